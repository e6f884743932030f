"""The file that wandb keeps of a run: records behind a header of seven bytes, in the format of LevelDB's logs.

Blocks of 32 KiB hold pieces, each with a checksum, its length and its kind; a record is one piece, or goes on over
several. What is less than a piece's header at the end of a block is padding. Newer versions of wandb have no reader.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BLOCK = 32768
FILE_HEADER = struct.Struct("<4sHB").pack(b":W&B", 0xBEE1, 0)
PIECE_HEADER = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[bytes]:
    """The records, each a protobuf, up to where a kill tore the file.

    Raises:
        ValueError: It begins in another way: this version of wandb has another format.
    """
    with path.open("rb") as file:
        header = file.read(len(FILE_HEADER))
        if header != FILE_HEADER[: len(header)]:
            raise ValueError(f"{path.name} is of an unknown format")
        record = b""
        while (piece := _next_piece(file)) is not None:
            kind, data = piece
            record = data if kind in (WHOLE, FIRST) else record + data
            if kind in (WHOLE, LAST):
                yield record


def _next_piece(file: BinaryIO) -> tuple[int, bytes] | None:
    """Kind and content; None at the end, or where a piece is not whole."""
    left = BLOCK - file.tell() % BLOCK
    if left < PIECE_HEADER.size:
        file.read(left)
    header = file.read(PIECE_HEADER.size)
    if len(header) < PIECE_HEADER.size:
        return None
    checksum, length, kind = PIECE_HEADER.unpack(header)
    data = file.read(length)
    if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
        return None
    return kind, data
