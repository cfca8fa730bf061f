"""The file formats: named arrays and a text in one file, without pickle.

Members are never compressed, and every declared size is compared with the bytes that are there, so
reading a file takes little more memory than it has bytes.
"""

import io
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, np.ndarray]

_TEXT = "dcjax.json"  # the name of the text in a file; `manifest` gives no array this name
_NPZ_DTYPES = frozenset(np.dtype(code).name for code in "?bhiqBHIQefdFD")
_SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * n}": np.dtype(f"<{kind.lower()}{n}") for kind in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}


class Format(NamedTuple):
    """A file format.

    * `dtypes`: names of the dtypes it can hold; other arrays must be given as bytes.
    * `write(file, text, arrays)`: writes arrays, which are in C order and little-endian.
    * `read(data)`: returns the text and the arrays from the file's bytes; the arrays may be
      read-only views. Raises an exception of any type if the data is not in this format.
    """

    dtypes: frozenset[str]
    write: Callable[[BinaryIO, str, Arrays], object]
    read: Callable[[bytes], tuple[str, Arrays]]


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that the path's suffix names."""
    suffix = pathlib.Path(path).suffix
    if suffix == ".npz":
        return Format(_NPZ_DTYPES, _write_npz, _read_npz)
    if suffix == ".safetensors":
        _safetensors()  # fails before anything is read or written
        dtypes = frozenset(dtype.name for dtype in _SAFETENSORS_DTYPES.values())
        return Format(dtypes, _write_safetensors, _read_safetensors)
    raise ValueError(f"expected a path that ends in .npz or .safetensors, got {os.fspath(path)!r}")


def _write_npz(file: BinaryIO, text: str, arrays: Arrays) -> None:
    members = {_TEXT: np.frombuffer(text.encode(), np.uint8), **arrays}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # Unlike np.savez, this dates every member 1980: equal variables make equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _read_npz(data: bytes) -> tuple[str, Arrays]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]!r} is compressed; only stored members are read")
        if sum(max(info.file_size, info.compress_size) for info in infos) > len(data):
            raise ValueError("the members are declared larger than the file")
        arrays = {info.filename: _read_npy(info.filename, archive.read(info)) for info in infos}
    if len(arrays) < len(infos):
        raise ValueError("two members have the same name")
    text = arrays.pop(f"{_TEXT}.npy", None)
    if text is None:
        raise ValueError(f"it has no {_TEXT}, which dcjax.save writes")
    return text.tobytes().decode(), {name.removesuffix(".npy"): arrays[name] for name in arrays}


def _read_npy(name: str, member: bytes) -> np.ndarray:
    """Return the array in the bytes of an .npy file; NumPy trusts its header, so check it first."""
    try:
        file = io.BytesIO(member)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not of version 1.0")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if is_fortran or dtype.kind not in "biufc":
            raise ValueError("not a plain array in C order")
        size = len(member) - file.tell()
        if dtype.itemsize * math.prod(shape) != size:
            raise ValueError(f"{dtype.name}{list(shape)} does not fit its {size} bytes")
        return np.load(io.BytesIO(member), allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{name!r}: {error}") from error


def _write_safetensors(file: BinaryIO, text: str, arrays: Arrays) -> None:
    file.write(_safetensors().numpy.save(dict(arrays), {_TEXT: text}))


def _read_safetensors(data: bytes) -> tuple[str, Arrays]:
    arrays = {}
    # This checks sizes, and that tensors have no holes or overlaps; `load` lacks bfloat16.
    for name, tensor in _safetensors().deserialize(data):
        dtype = _SAFETENSORS_DTYPES[tensor["dtype"]]
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    text = json.loads(header).get("__metadata__", {}).get(_TEXT)
    if text is None:
        raise ValueError(f"its metadata has no {_TEXT}, which dcjax.save writes")
    return text, arrays


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "a .safetensors file needs: pip install safetensors. A .npz file needs no package"
        ) from error
    return safetensors
