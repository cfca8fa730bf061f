"""From `convolution.cc` to functions that XLA calls."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax

SOURCE = Path(__file__).with_name("convolution.cc")
PASSES = ("forward", "by_image", "by_kernel")
_COMPILERS = ("c++", "g++", "clang++")
_REMEDY = (
    "install a C++17 compiler (GCC or Clang; CXX may name it), or take "
    "jax.lax.conv_general_dilated, which needs none"
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
    try:
        command = _command()
        sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
        texts = [source.read_bytes() for source in sources]
        made_of = repr((command, importlib.metadata.version("jaxlib"), texts))
        digest = hashlib.sha256(made_of.encode()).hexdigest()
        library = _cache() / f"convolution-{digest[:16]}.so"
        if not library.is_file():
            _compile(command.words, library)
        functions = ctypes.CDLL(str(library))
        for name in PASSES:
            handler = jax.ffi.pycapsule(getattr(functions, f"dcjax_convolution_{name}"))
            jax.ffi.register_ffi_target(target(name), handler, platform="cpu")
    except NativeError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise NativeError(f"the convolutions cannot be kept or loaded: {error}") from error
    return library


def target(name: str) -> str:
    """By what name XLA knows a pass."""
    return f"dcjax_convolution_{name}"


class _Command(NamedTuple):
    """How to compile, and what the compiler predefines: which it is, and for which processor."""

    words: list[str]
    macros: str


def _command() -> _Command:
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    # Loops begin where the processor reads anew, or one and the same is up to a tenth slower.
    words = [*_compiler(), "-std=c++17", "-O3", "-falign-loops=64", "-fPIC"]
    words.append("-march=native" if on_x86 else "-mcpu=native")
    macros = _run([*words, "-dM", "-E", "-x", "c++", os.devnull])
    # One rounding for each product and sum, in every tile: the zeros of a block-diagonal kernel
    # change no bit only if all are rounded alike. For some processors GCC would rather not.
    words.append("-ffp-contract=fast")
    if on_x86 and "__clang__" not in macros:
        words.append("--param=avoid-fma-max-bits=0")
    if "__clang__" in macros and "__AVX512F__" in macros:
        words.append("-mprefer-vector-width=512")
    return _Command(words, macros)


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    candidates = [chosen] if chosen else [[name] for name in _COMPILERS]
    for words in candidates:
        if shutil.which(words[0]):
            return words
    names = ", ".join(shlex.join(words) for words in candidates)
    raise NativeError(f"expected a C++ compiler, found none of {names}; {_REMEDY}")


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcjax"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile(command: list[str], library: Path) -> None:
    """To a file of its own first, so that of several processes each finds a whole one or none."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        # -isystem: what a compiler warns of in jaxlib's headers is not ours.
        headers = jax.ffi.include_dir()
        _run([*command, "-shared", "-isystem", headers, str(SOURCE), "-o", str(made)])
        made.replace(library)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NativeError(f"{shlex.join(command)} failed; {_REMEDY}. It said:\n{done.stderr}")
    return done.stdout
