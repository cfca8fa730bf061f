"""Files of records that tensorflow-datasets writes, read without TensorFlow.

In a TFRecord file each record is: its length (8 bytes), the checksum of the length (4), the record,
its checksum (4); little-endian. The checksum is CRC-32C, rotated right by 15 bits plus a constant.
"""

import contextlib
import itertools
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

READ = 256  # records that are read at once


class Shard(NamedTuple):
    """An open file.

    Attributes:
      length: the number of its records.
      read: returns the records at some places, each checked against its checksum.
    """

    length: int
    read: Callable[[list[int]], Sequence[bytes]]

    def records(self, places: Iterable[int]) -> Iterator[bytes]:
        """Yield the records at these places, a few hundred read at once."""
        waiting = map(int, places)
        while some := [*itertools.islice(waiting, READ)]:
            yield from self.read(some)


def opened(path: Path, layout: str) -> contextlib.AbstractContextManager[Shard]:
    """Open a file of records in the layout `array_record` or `tfrecord`.

    A damaged file raises exceptions of any type, here or while it is read.
    """
    return LAYOUTS[layout](path)


@contextlib.contextmanager
def _array_record(path: Path) -> Iterator[Shard]:
    from array_record.python.array_record_module import ArrayRecordReader

    with contextlib.closing(ArrayRecordReader(str(path))) as reader:
        yield Shard(reader.num_records(), reader.read)


@contextlib.contextmanager
def _tfrecord(path: Path) -> Iterator[Shard]:
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            starts = [*_starts(content)]
            yield Shard(len(starts), lambda places: [_record(content, starts[p]) for p in places])


def _starts(content: mmap.mmap) -> Iterator[int]:
    """Yield where each record's length stands."""
    at = 0
    while at < len(content):
        length = _checked(content, at, 8)
        yield at
        at += 12 + int.from_bytes(length, "little") + 4
    if at > len(content):
        raise ValueError("it ends within a record")


def _record(content: mmap.mmap, start: int) -> bytes:
    length = int.from_bytes(content[start : start + 8], "little")
    return _checked(content, start + 12, length)


def _checked(content: mmap.mmap, start: int, length: int) -> bytes:
    """Return some bytes, which their checksum follows."""
    import google_crc32c

    data, end = content[start : start + length], content[start + length : start + length + 4]
    crc = google_crc32c.value(data)
    if len(end) < 4 or struct.unpack("<I", end)[0] != masked(crc):
        raise ValueError(f"the checksum of the {length} bytes at {start} does not match")
    return data


def masked(crc: int) -> int:
    """Return the form in which TFRecord files store a checksum.

    >>> hex(masked(0))
    '0xa282ead8'
    """
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


LAYOUTS = {"array_record": _array_record, "tfrecord": _tfrecord}
