"""From `convolution.cc` to functions that XLA calls."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

SOURCE = Path(__file__).with_name("convolution.cc")
PASSES = ("forward", "by_image", "by_kernel")
_COMPILERS = ("c++", "g++", "clang++")
_REMEDY = (
    "install a C++17 compiler (GCC or Clang; CXX may name it), or take "
    "dcjax.models.conv_general_dilated, which needs none"
)


class NativeError(RuntimeError):
    """The convolutions could not be compiled or loaded here."""


@functools.cache
def build() -> Path:
    """Compile the convolutions for this processor, unless that is done, and make XLA know them.

    It takes some seconds once for each processor, compiler and version of jaxlib; what is compiled
    is kept in the user's cache (`$XDG_CACHE_HOME/dcjax`, by default `~/.cache/dcjax`).

    Returns:
      The shared library.

    Raises:
      NativeError: if there is no compiler, or it fails; says what it said.

    >>> build().suffix
    '.so'
    """
    command = [*_compiler(), *_flags()]
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])  # the compiler and processor
    digest = hashlib.sha256(repr((command, macros, _headers())).encode() + SOURCE.read_bytes())
    try:
        library = _cache() / f"convolution-{digest.hexdigest()[:16]}.so"
        if not library.is_file():
            _compile(command, library)
        functions = ctypes.CDLL(str(library))
    except OSError as error:
        raise NativeError(f"the convolutions cannot be kept or loaded: {error}") from error
    for name in PASSES:
        handler = jax.ffi.pycapsule(getattr(functions, f"dcjax_convolution_{name}"))
        jax.ffi.register_ffi_target(target(name), handler, platform="cpu")
    return library


def target(name: str) -> str:
    """By what name XLA knows a pass."""
    return f"dcjax_convolution_{name}"


def _compiler() -> list[str]:
    chosen = os.environ.get("CXX")
    names = (chosen,) if chosen else _COMPILERS
    for name in names:
        words = shlex.split(name)
        if shutil.which(words[0]):
            return words
    raise NativeError(f"expected a C++ compiler, found none of {', '.join(names)}; {_REMEDY}")


def _flags() -> list[str]:
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    return ["-std=c++17", "-O3", native, "-fPIC"]


def _headers() -> str:
    """Where jaxlib's are; they change with its version."""
    return jax.ffi.include_dir()


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcjax"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile(command: list[str], library: Path) -> None:
    """To a file of its own first, so that of several processes each finds a whole one or none."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        # -isystem: what a compiler warns of in jaxlib's headers is not ours.
        _run([*command, "-shared", "-isystem", _headers(), str(SOURCE), "-o", str(made)])
        made.replace(library)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NativeError(f"{shlex.join(command)} failed; {_REMEDY}. It said:\n{done.stderr}")
    return done.stdout
