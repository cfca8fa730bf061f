"""Named arrays and a text in one file, without pickle: .npz and .safetensors.

Both are read from the file's bytes, and nothing larger than those is made of them: members are
never compressed, and every declared size is compared with the bytes that are there.
"""

import io
import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, np.ndarray]

# A safetensors header has the text with escapes, and the names, shapes and places of the tensors.
# Being JSON it takes some ten times its length when it is parsed. The package reads 100 MB.
_HEADER_LIMIT = 64 * 2**20

# The text's place; no leaf has this name.
_TEXT = "dcjax.json"

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
# All that numpy writes for plain arrays in C order, so that nothing has to be evaluated.
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][biufc]\d{1,2})', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n"
)

_NPZ_DTYPES = frozenset(np.dtype(code).name for code in "?bhiqBHIQefdFD")
_SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * n}": np.dtype(f"<{kind.lower()}{n}") for kind in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}
_SAFETENSORS_NAMES = frozenset(dtype.name for dtype in _SAFETENSORS_DTYPES.values())


class Container(NamedTuple):
    """A file format.

    * `dtypes`: the names of those it has; other arrays have to come as their bytes.
    * `write(file, text, arrays)`: arrays in C order, little-endian, by names that it can have.
    * `read(data)`: the inverse, from the file's bytes. What is no such file raises an exception of
      any kind. The arrays may be read-only, and may be views of `data`.
    """

    dtypes: frozenset[str]
    write: Callable[[BinaryIO, str, Arrays], object]
    read: Callable[[bytes], tuple[str, Arrays]]


def container_of(path: str | os.PathLike[str]) -> Container:
    """The format that the path's suffix names."""
    suffix = pathlib.Path(path).suffix
    if suffix == ".npz":
        return Container(_NPZ_DTYPES, _write_npz, _read_npz)
    if suffix == ".safetensors":
        _safetensors()
        return Container(_SAFETENSORS_NAMES, _write_safetensors, _read_safetensors)
    raise ValueError(
        f"the path's suffix names the format, .npz or .safetensors; got {suffix or 'none'!r} in "
        f"{os.fspath(path)!r}"
    )


def _write_npz(file: BinaryIO, text: str, arrays: Arrays) -> None:
    members = {_TEXT: np.frombuffer(text.encode(), np.uint8), **arrays}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # A ZipInfo by itself is of 1980, so that equal variables make equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _read_npz(data: bytes) -> tuple[str, Arrays]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]!r} is compressed, and only stored members are read")
        if sum(max(info.file_size, info.compress_size) for info in infos) > len(data):
            raise ValueError("the members are declared larger than the file")
        arrays = {info.filename: _npy(info.filename, archive.read(info)) for info in infos}
    if len(arrays) < len(infos):
        raise ValueError("two members have the same name")
    text = arrays.pop(f"{_TEXT}.npy", None)
    if text is None:
        raise ValueError(f"it has no {_TEXT}, which dcjax.save writes")
    return text.tobytes().decode(), {name.removesuffix(".npy"): arrays[name] for name in arrays}


def _npy(name: str, member: bytes) -> np.ndarray:
    """The array in the bytes of an .npy file."""
    start = len(_NPY_MAGIC) + 2
    end = start + int.from_bytes(member[start - 2 : start], "little")
    header = _NPY_HEADER.fullmatch(member[start:end])
    if not member.startswith(_NPY_MAGIC) or header is None:
        raise ValueError(f"{name!r} is no plain numpy array in C order")
    shape = [int(size) for size in re.findall(rb"\d+", header[2])]
    return _array(name, member, end, np.dtype(header[1].decode()), shape)


def _write_safetensors(file: BinaryIO, text: str, arrays: Arrays) -> None:
    file.write(_safetensors().numpy.save(dict(arrays), {_TEXT: text}))


def _read_safetensors(data: bytes) -> tuple[str, Arrays]:
    size = int.from_bytes(data[:8], "little")
    if size > min(_HEADER_LIMIT, len(data) - 8):
        raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
    # The package checks that the tensors fill the rest without holes or overlaps.
    tensors = dict(_safetensors().deserialize(data))
    text = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(_TEXT)
    if text is None:
        raise ValueError(f"its metadata has no {_TEXT}, which dcjax.save writes")
    arrays = {
        name: _array(name, t["data"], 0, _SAFETENSORS_DTYPES[t["dtype"]], t["shape"])
        for name, t in tensors.items()
    }
    return text, arrays


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "a .safetensors file needs the package safetensors: pip install safetensors, or "
            "pip install 'dcjax[safetensors]'; a .npz file needs no other package"
        ) from error
    return safetensors


def _array(
    name: str, data: bytes | bytearray, start: int, dtype: np.dtype, shape: list[int]
) -> np.ndarray:
    needed, there = dtype.itemsize * math.prod(shape), len(data) - start
    if needed != there:
        raise ValueError(f"{name!r}: {dtype.name}{shape} has {needed} bytes, and {there} are there")
    return np.ndarray(shape, dtype, data, start)
