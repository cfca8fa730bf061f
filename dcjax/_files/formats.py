"""The file formats: named arrays and a text in one file, without pickle.

Arrays are read as bytes: the text describes them, so that nothing else in a file is believed.
Members are never compressed, and declared sizes are compared with the bytes that are there, so
reading a file takes little more memory than it has bytes.
"""

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import BinaryIO, NamedTuple

import numpy as np

_TEXT = "dcjax.json"  # the name of the text in a file; `manifest` gives no array this name
_NPZ_DTYPES = frozenset(np.dtype(code).name for code in "?bhiqBHIQefdFD")
_SAFETENSORS_DTYPES = _NPZ_DTYPES - {"complex64", "complex128"} | {
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
}


class Format(NamedTuple):
    """A file format.

    * `dtypes`: names of the dtypes it can hold; other arrays must be given as bytes.
    * `write(file, text, arrays)`: writes arrays, which are in C order and little-endian.
    * `read(data)`: returns the text and the arrays' bytes from the file's bytes. Raises an
      exception of any type if the data is not in this format.
    """

    dtypes: frozenset[str]
    write: Callable[[BinaryIO, str, Mapping[str, np.ndarray]], object]
    read: Callable[[bytes], tuple[str, dict[str, bytes]]]


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that the path's suffix names."""
    suffix = pathlib.Path(path).suffix
    if suffix == ".npz":
        return NPZ
    if suffix == ".safetensors":
        _safetensors()  # fails before anything is read or written
        return Format(_SAFETENSORS_DTYPES, _write_safetensors, _read_safetensors)
    raise ValueError(f"expected a path that ends in .npz or .safetensors, got {os.fspath(path)!r}")


def _write_npz(file: BinaryIO, text: str, arrays: Mapping[str, np.ndarray]) -> None:
    members = {_TEXT: np.frombuffer(text.encode(), np.uint8), **arrays}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # Unlike np.savez, this dates every member 1980: equal variables make equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _read_npz(data: bytes) -> tuple[str, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("a member is compressed; only stored members are read")
        if sum(max(info.file_size, info.compress_size) for info in infos) > len(data):
            raise ValueError("the members are declared larger than the file")
        members = {info.filename.removesuffix(".npy"): archive.read(info) for info in infos}
    if len(members) < len(infos):
        raise ValueError("two members have the same name")
    # The header of an .npy file of version 1.0 is as long as its bytes 8 and 9 say.
    arrays = {k: v[10 + int.from_bytes(v[8:10], "little") :] for k, v in members.items()}
    return arrays.pop(_TEXT).decode(), arrays


NPZ = Format(_NPZ_DTYPES, _write_npz, _read_npz)


def _write_safetensors(file: BinaryIO, text: str, arrays: Mapping[str, np.ndarray]) -> None:
    file.write(_safetensors().numpy.save(dict(arrays), {_TEXT: text}))


def _read_safetensors(data: bytes) -> tuple[str, dict[str, bytes]]:
    # This checks sizes, and that tensors have no holes or overlaps.
    arrays = {name: bytes(tensor["data"]) for name, tensor in _safetensors().deserialize(data)}
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    return json.loads(header)["__metadata__"][_TEXT], arrays


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "a .safetensors file needs: pip install safetensors. A .npz file needs no package"
        ) from error
    return safetensors
