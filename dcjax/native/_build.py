"""Compilation of `convolution.cc` into functions that XLA calls."""

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

import jax

SOURCE = Path(__file__).with_name("convolution.cc")
PASSES = ("forward", "by_image", "by_kernel")
_REMEDY = (
    "install a C++17 compiler (GCC or Clang; CXX may name it), or take "
    "jax.lax.conv_general_dilated, which needs none"
)


class NativeError(RuntimeError):
    """The convolutions could not be compiled or loaded here."""


@functools.cache
def build() -> Path:
    """Compile the convolutions for this processor, if that is not done, and register them with XLA.

    Compilation takes some seconds, once for each processor, compiler and version of jaxlib. The
    user's cache keeps the library (`$XDG_CACHE_HOME/dcjax`, by default `~/.cache/dcjax`).

    Returns:
      The shared library.

    Raises:
      NativeError: a compiler is missing or fails; the message holds its output.

    >>> build().suffix
    '.so'
    """
    try:
        words, macros = _command()
        texts = [source.read_bytes() for source in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
        made_of = repr((words, macros, importlib.metadata.version("jaxlib"), texts))
        digest = hashlib.sha256(made_of.encode()).hexdigest()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcjax"
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / f"convolution-{digest[:16]}.so"
        if not library.is_file():
            _compile(words, library)
        functions = ctypes.CDLL(str(library))
        for name in PASSES:
            handler = jax.ffi.pycapsule(getattr(functions, target(name)))
            jax.ffi.register_ffi_target(target(name), handler, platform="cpu")
    except NativeError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise NativeError(f"the convolutions cannot be kept or loaded: {error}") from error
    return library


def target(name: str) -> str:
    """Return a pass's name in the library and in XLA."""
    return f"dcjax_convolution_{name}"


def _command() -> tuple[list[str], str]:
    """Return the compiler's command, and the macros that tell compilers and processors apart."""
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    # Without aligned loops the same code is up to a tenth slower.
    words = [*_compiler(), "-std=c++17", "-O3", "-falign-loops=64", "-fPIC"]
    words.append("-march=native" if on_x86 else "-mcpu=native")
    macros = _run([*words, "-dM", "-E", "-x", "c++", os.devnull])
    # Every product and sum is rounded once, in every tile. Otherwise the zeros of a block-diagonal
    # kernel would change bits. GCC avoids fused multiplication and addition on some processors.
    words.append("-ffp-contract=fast")
    if on_x86 and "__clang__" not in macros:
        words.append("--param=avoid-fma-max-bits=0")
    if "__clang__" in macros and "__AVX512F__" in macros:
        words.append("-mprefer-vector-width=512")
    return words, macros


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    candidates = [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]
    for words in candidates:
        if shutil.which(words[0]):
            return words
    names = ", ".join(map(shlex.join, candidates))
    raise NativeError(f"expected a C++ compiler, found none of {names}; {_REMEDY}")


def _compile(command: list[str], library: Path) -> None:
    # Renaming a finished file keeps other processes from loading a library that is half written.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        # -isystem silences warnings about jaxlib's headers.
        headers = jax.ffi.include_dir()
        _run([*command, "-shared", "-isystem", headers, str(SOURCE), "-o", str(made)])
        made.replace(library)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NativeError(f"{shlex.join(command)} failed; {_REMEDY}. It said:\n{done.stderr}")
    return done.stdout
