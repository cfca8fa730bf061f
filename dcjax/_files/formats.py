"""The file formats: named arrays and a text in one file, without pickle.

NumPy and the safetensors package read these files too. Here arrays are read as bytes, one by one,
because both packages hold everything twice, and the latter writes temporary files of its own. The
text describes the arrays: nothing else in a file is believed. Members are never compressed,
and declared sizes are compared with the bytes that are there before memory is allocated, so reading
a file takes little more memory than it has bytes.
"""

import functools
import io
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Read = Callable[[int], np.ndarray]
"""Reads an array of so many bytes, as uint8; raises an exception if it has another size."""

_TEXT = "dcjax.json"  # the name of the text in a file; `manifest` gives no array this name
_NPZ_DTYPES = frozenset(np.dtype(code).name for code in "?bhiqBHIQefdFD")
_SAFETENSORS_DTYPES = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_ALIGNED = 64  # JAX takes over an array of NumPy's on the CPU, without a copy, if it begins there
_PIECE = 2**20


class Format(NamedTuple):
    """A file format.

    * `dtypes`: names of the dtypes it can hold; other arrays must be given as bytes.
    * `write(file, text, arrays)`: writes arrays, which are in C order and little-endian.
    * `read(file)`: returns the text and a reader of each array's bytes. Raises an exception of any
      type if the data is not in this format.
    """

    dtypes: frozenset[str]
    write: Callable[[io.BufferedIOBase, str, Mapping[str, np.ndarray]], object]
    read: Callable[[io.BufferedIOBase], tuple[str, dict[str, Read]]]


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that the path's suffix names."""
    suffix = pathlib.Path(path).suffix
    if suffix not in _FORMATS:
        raise ValueError(
            f"expected a path that ends in {' or '.join(_FORMATS)}, got {os.fspath(path)!r}"
        )
    return _FORMATS[suffix]


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of every entry along a new last axis."""
    return array[..., None].view(np.uint8)


def _write_npz(file: io.BufferedIOBase, text: str, arrays: Mapping[str, np.ndarray]) -> None:
    members = {_TEXT: np.frombuffer(text.encode(), np.uint8), **arrays}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # Unlike np.savez, this dates every member 1980: equal variables make equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _read_npz(file: io.BufferedIOBase) -> tuple[str, dict[str, Read]]:
    archive, size = zipfile.ZipFile(file), file.seek(0, os.SEEK_END)
    infos = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ValueError("a member is compressed; only stored members are read")
    if sum(max(info.file_size, info.compress_size) for info in infos) > size:
        raise ValueError("the members are declared larger than the file")
    arrays: dict[str, Read] = {
        info.filename.removesuffix(".npy"): functools.partial(_read_member, archive, info)
        for info in infos
    }
    if len(arrays) < len(infos):
        raise ValueError("two members have the same name")
    return arrays.pop(_TEXT)(-1).tobytes().decode(), arrays


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> np.ndarray:
    """Read an array of `size` bytes, or of any size for -1; `zipfile` compares its CRC-32."""
    with archive.open(info) as member:
        # The header of an .npy file of version 1.0 is as long as its bytes 8 and 9 say. NumPy would
        # parse it, which takes ten times as long as the rest; the text describes the array.
        header = member.read(10)
        there = info.file_size - 10 - len(member.read(int.from_bytes(header[8:], "little")))
        if size not in (-1, there):
            raise ValueError(f"the array has {there} bytes, expected {size}")
        return _filled(there, member)


def _write_safetensors(
    file: io.BufferedIOBase, text: str, arrays: Mapping[str, np.ndarray]
) -> None:
    header: dict[str, object] = {"__metadata__": {_TEXT: text}}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)  # so that all are aligned
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        kind = _SAFETENSORS_DTYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, array in ordered:
        file.write(as_bytes(array).data)


def _read_safetensors(file: io.BufferedIOBase) -> tuple[str, dict[str, Read]]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError("its header is declared longer than the file")
    header = json.loads(file.read(length))
    text = header.pop("__metadata__")[_TEXT]
    sizes = {kind: np.dtype(name).itemsize for name, kind in _SAFETENSORS_DTYPES.items()}
    arrays: dict[str, Read] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end or stop - start != sizes[entry["dtype"]] * math.prod(entry["shape"]):
            raise ValueError(f"{name}: its shape and place in the file do not fit")
        arrays[name] = functools.partial(_read_tensor, file, 8 + length + start, stop - start)
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"the file has {size - 8 - length} bytes of arrays, declared are {end}")
    return text, arrays


def _read_tensor(file: io.BufferedIOBase, place: int, there: int, size: int) -> np.ndarray:
    if there != size:
        raise ValueError(f"the array has {there} bytes, expected {size}")
    file.seek(place)
    return _filled(size, file)


def _filled(size: int, file: Any) -> np.ndarray:
    """Read so many bytes into new, aligned memory."""
    spare = np.empty(size + _ALIGNED, np.uint8)
    start = -spare.ctypes.data % _ALIGNED
    data = spare[start : start + size]
    for part in range(0, size, _PIECE):  # `zipfile` holds a copy of what it reads at once
        piece = data[part : part + _PIECE]
        if file.readinto(piece.data) != len(piece):
            raise EOFError("the file ends within an array")
    return data


NPZ = Format(_NPZ_DTYPES, _write_npz, _read_npz)
_FORMATS = {
    ".npz": NPZ,
    ".safetensors": Format(frozenset(_SAFETENSORS_DTYPES), _write_safetensors, _read_safetensors),
}
