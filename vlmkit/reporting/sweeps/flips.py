"""Questions that one variant's runs answer well and another's do not, with their pictures where these can be had.

Pictures are those of lmms-eval's task, if it can be loaded here; one is shown only if it is what the runs were asked
about, by the digest beside their answers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmkit.errors import UserError, one_line
from vlmkit.evaluation.samples import Line, cluster_of, question_of, scored_documents
from vlmkit.evaluation.scoring import counts_pairs
from vlmkit.reporting.pictures import picture_uri
from vlmkit.reporting.sweeps.comparisons import Comparer, find_cell
from vlmkit.reporting.sweeps.content import MOST_FLIP_TASKS, Flip, Flips
from vlmkit.reporting.sweeps.runs import ReadRun
from vlmkit.reporting.sweeps.scores import Result, Scored

THUMBNAIL = 160  # pixels, of the longer side
MOST_CHARACTERS = 2000  # of a text that is shown
SAME = 1e-9  # that two means may differ by and be the same


def find_flips(comparer: Comparer, baseline: int, other: int, main: Scored, shown: int) -> list[Flips]:
    """Of each task of the main measure the questions whose score changes most, mean over seeds.

    Args:
        comparer: Knows the runs and what they answered.
        baseline: A variant.
        other: The one that it is held against.
        main: The measure.
        shown: How many of each kind.
    """
    sides = tuple(list(comparer.scores(comparer.groups[number], main)) for number in (baseline, other))
    tasks = list(dict.fromkeys(result.task for result, _ in main.parts))[:MOST_FLIP_TASKS]
    found = []
    for result, _ in main.parts:
        answers = comparer.answers.of.get(result)
        if result.task in tasks and answers and all(sides) and answers.paired(sides[0], sides[1], 1.0):
            found.append(_of_task(comparer, sides, result, main, other, shown))
    return found


def _of_task(
    comparer: Comparer,
    sides: tuple[list[ReadRun], ...],
    result: Result,
    main: Scored,
    other: int,
    shown: int,
) -> Flips:
    lines = [[_lines(comparer, run, result) for run in side] for side in sides]
    common = _asked_all(lines[0] + lines[1])
    if counts_pairs(comparer.answers.of[result].aggregation):  # both of a pair have its score: the first stands for it
        common = list({cluster_of(lines[0][0][doc]): doc for doc in reversed(common)}.values())[::-1]
    means = np.array(
        [[np.mean([of_run[doc]["scores"][result.metric] for of_run in side]) for doc in common] for side in lines]
    )
    gains = means[1] - means[0]
    order = _largest_first(np.abs(gains), [plain_text(lines[0][0][doc].get("prompt")) for doc in common])
    better = main.measure.higher_is_better
    gained, lost = ([n for n in order if sign * gains[n] > SAME] for sign in ((1, -1) if better else (-1, 1)))
    chosen = [*gained[:shown], *lost[:shown]]
    wanted = {common[number]: tuple(lines[0][0][common[number]].get("pictures") or ()) for number in chosen}
    pictures, note = _load_pictures(result.task, _local_data(comparer, sides[0][0], result), wanted)
    flips = {
        number: _flip(result, common[number], lines, (means[0][number], means[1][number]), pictures)
        for number in chosen
    }
    return Flips(
        other,
        result.name,
        gained=tuple(flips[number] for number in gained[:shown]),
        lost=tuple(flips[number] for number in lost[:shown]),
        num_gained=len(gained),
        num_lost=len(lost),
        questions=len(common),
        note=note,
    )


def _largest_first(changes: NDArray[np.float64], questions: Sequence[str]) -> list[int]:
    """Numbers by their changes; of equal ones each question comes once before any comes twice."""
    seen: Counter[tuple[float, str]] = Counter()

    def key(number: int) -> tuple[float, int]:
        change = round(float(changes[number]), 9)
        seen[change, questions[number]] += 1
        return -change, seen[change, questions[number]]

    return sorted(range(len(questions)), key=key)


def _asked_all(runs: Sequence[Mapping[int, Line]]) -> list[int]:
    """Documents that all runs answered the same question about."""
    first, *others = runs
    return [
        doc_id
        for doc_id, line in first.items()
        if all(doc_id in other and question_of(other[doc_id]) == question_of(line) for other in others)
    ]


def _lines(comparer: Comparer, run: ReadRun, result: Result) -> dict[int, Line]:
    """Document → its line, of those that the metric is about."""
    cell = find_cell(run, comparer.steps.of[run], result.task, result.limit)
    lines = scored_documents(cell.folder) if cell else {}
    return {doc_id: line for doc_id, line in lines.items() if result.metric in line["scores"]}


def _flip(
    result: Result,
    doc_id: int,
    lines: Sequence[Sequence[Mapping[int, Line]]],
    scores: tuple[float, float],
    pictures: Mapping[int, tuple[str, ...]],
) -> Flip:
    first = lines[0][0][doc_id]
    of_baseline, of_other = (tuple(plain_text(of_run[doc_id].get("answer")) for of_run in side) for side in lines)
    return Flip(
        result.task,
        doc_id,
        prompt=plain_text(first.get("prompt")).replace("<image>", "").strip(),
        target=plain_text(first.get("target")),
        pictures=pictures.get(doc_id, ()),
        answers=(of_baseline, of_other),
        scores=(float(scores[0]), float(scores[1])),
    )


def plain_text(value: Any) -> str:
    """An answer, a target or a prompt to read; several stand behind each other."""
    text = " | ".join(map(plain_text, value)) if isinstance(value, list) else "" if value is None else str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} \N{HORIZONTAL ELLIPSIS}"


def _local_data(comparer: Comparer, run: ReadRun, result: Result) -> str | None:
    """Where the task's data lay, if not where lmms-eval gets them."""
    cell = find_cell(run, comparer.steps.of[run], result.task, result.limit)
    return cell.order.local_data if cell else None


def _load_pictures(
    task: str, local_data: str | None, wanted: Mapping[int, tuple[str, ...]]
) -> tuple[dict[int, tuple[str, ...]], str]:
    """Document → thumbnails, of documents → the digests of their pictures; and why some or all are missing."""
    if not any(wanted.values()):
        return {}, ""
    try:
        # Imported here: it takes seconds, and lmms-eval is not always there.
        from vlmkit.evaluation.tasks import load_task
        from vlmkit.processing.images import digest_picture, to_rgb

        loaded = load_task(task, local_data)
        pictures = {doc_id: list(map(to_rgb, loaded.pictures(doc_id))) for doc_id, digests in wanted.items() if digests}
    except ImportError:
        return {}, "pictures are not shown: lmms-eval is not installed"
    except Exception as error:  # of foreign code, whose pictures the report can do without
        return {}, f"pictures are not shown: {error if isinstance(error, UserError) else one_line(error)}"
    same = {doc_id: of for doc_id, of in pictures.items() if tuple(map(digest_picture, of)) == wanted[doc_id]}
    note = "" if len(same) == len(pictures) else f"{len(pictures) - len(same)} questions have other pictures here"
    return {doc_id: tuple(picture_uri(one, THUMBNAIL) for one in of) for doc_id, of in same.items()}, note
