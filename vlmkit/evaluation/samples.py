"""samples.jsonl of an evaluation cell: one line for each request, appended by batches, so that a killed cell goes on.

A line has ``index`` (of the request), ``doc_id``, ``prompt``, ``pictures`` (their digests), ``answer`` and why it
ended, or ``error``. When all are answered the file is written anew, in the order of the requests, and the first line
of each document also has ``target``, ``scores`` (metric → number), ``strata`` (metric → the part of the task that the
document belongs to) and ``cluster`` (documents that share it, a picture for instance, are not independent).
"""

import json
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmkit.paths import whole_file

Line = dict[str, Any]
NAME = "samples.jsonl"


def part(folder: Path, rank: int) -> Path:
    """The file that a process appends to: the main one to samples.jsonl itself."""
    return folder / (NAME if rank == 0 else f"samples.{rank}.jsonl")


def read_samples(folder: Path) -> dict[int, Line]:
    """Index → line, in order, of all that the cell's processes wrote; what a kill tore is left out."""
    found: dict[int, Line] = {}
    for path in sorted(folder.glob("samples*.jsonl")):
        for line in _whole_lines(path):
            if "error" not in line or line["index"] not in found:  # an answer stays one, in whatever file it stands
                found[line["index"]] = line
    return dict(sorted(found.items()))


def scored_documents(folder: Path) -> dict[int, Line]:
    """Document → its line with scores, in the order of the task; those that could not be answered have none."""
    of_document: defaultdict[int, list[Line]] = defaultdict(list)
    for line in read_samples(folder).values():
        of_document[line["doc_id"]].append(line)
    return {doc_id: _with_choice(lines) for doc_id, lines in of_document.items() if lines[0].get("scores")}


def _with_choice(lines: Sequence[Line]) -> Line:
    """The first line of a document, which has the scores; where choices were weighed, the likeliest is the answer."""
    if "logprob" not in lines[0]:
        return lines[0]
    return lines[0] | {"answer": max(lines, key=lambda line: line["logprob"])["answer"]}


def question_of(line: Line) -> Hashable:
    """What was asked: the same for two lines if prompt and pictures are."""
    return line.get("prompt"), tuple(line.get("pictures") or ())


def cluster_of(line: Line) -> Hashable:
    """Lines that have the same are not independent."""
    cluster: Hashable = line.get("cluster", line["doc_id"])
    return cluster


class SampleFile:
    """Takes the lines of a batch and keeps all of them or, if the process dies while it writes, some."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def append(self, lines: Iterable[Line]) -> None:
        """Write the lines; they are on disk when this returns.

        Raises:
            OSError: The disk is full, or gone.
        """
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


@contextmanager
def appended(path: Path) -> Iterator[SampleFile]:
    """Open a file of lines to append to; a torn last line is cut off first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.ftruncate(descriptor, _end_of_last_line(path))
        yield SampleFile(descriptor, path)
    finally:
        os.close(descriptor)


def rewrite(folder: Path, lines: Iterable[Line]) -> None:
    """Put all lines into samples.jsonl, whole or not at all; then the other processes' files are not needed."""
    with whole_file(folder / NAME) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for path in folder.glob("samples.*.jsonl"):
        path.unlink()


def _whole_lines(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if not text.endswith("\n"):
                return
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("index"), int):
                yield line


def _end_of_last_line(path: Path) -> int:
    """Bytes up to and with the last newline; from the end, in blocks."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - 65536, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
