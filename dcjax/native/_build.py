"""Compilation of `convolution.cc` into functions that XLA calls, and the folder that keeps them.

A library's name holds a digest of what it was made of, one of the compiler, and the SHA-256 of its
own bytes. A library whose bytes do not fit its name is never loaded.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from pathlib import Path

import jax

SOURCE = Path(__file__).with_name("convolution.cc")
PASSES = ("forward", "by_image", "by_kernel")
PATIENCE = 300
"""Seconds that a compiler may take; it needs about ten."""
_REMEDY = (
    "install a C++17 compiler (GCC or Clang; CXX may name it), or take "
    "jax.lax.conv_general_dilated, which needs none"
)
_LOCK = threading.Lock()


class NativeError(RuntimeError):
    """The convolutions could not be compiled or loaded here."""


def build() -> Path:
    """Compile the convolutions for this processor, if that is not done, and register them with XLA.

    Compilation takes some seconds, once for each processor, compiler and version of jaxlib. The
    user's cache keeps the library (`$XDG_CACHE_HOME/dcjax/native`, by default
    `~/.cache/dcjax/native`). Where that cannot be written, a warning says so, and a temporary
    folder keeps it until the process ends. A kept library needs no compiler. One that was damaged
    is compiled again.

    Returns:
      The shared library.

    Raises:
      NativeError: a compiler is missing, fails or hangs (the message holds its output), or others
        can write to the folder.

    >>> build().suffix
    '.so'
    """
    with _LOCK:
        return _registered()


def target(name: str) -> str:
    """Return a pass's name in the library and in XLA."""
    return f"dcjax_convolution_{name}"


@functools.cache
def _registered() -> Path:
    try:
        library, functions = _loaded()
        for name in PASSES:
            handler = jax.ffi.pycapsule(getattr(functions, target(name)))
            jax.ffi.register_ffi_target(target(name), handler, platform="cpu")
    except NativeError:
        raise
    except Exception as error:  # callers that can go on without catch one type
        raise NativeError(f"the convolutions cannot be kept or loaded: {error}") from error
    return library


def _loaded() -> tuple[Path, ctypes.CDLL]:
    """Return a library, found or compiled, and its functions."""
    name = f"convolution-{_ingredients()}"
    compiler = _compiler()
    # A library of any compiler serves where there is none.
    of_compiler = f"{name}-{_digest(_files(compiler))}" if compiler else name
    folder = _folder()
    _sweep(folder)
    for library in sorted(folder.glob(f"{of_compiler}-*.so")):
        if not _is_whole(library):
            continue
        # One that another system left in a shared home may lack this system's libraries.
        with contextlib.suppress(OSError):
            return library, ctypes.CDLL(str(library))
    if not compiler:
        names = os.environ.get("CXX") or ", ".join(_CANDIDATES)
        raise NativeError(f"expected a C++ compiler, found none of {names}; {_REMEDY}")
    if not os.access(folder, os.W_OK | os.X_OK):
        folder = _temporary(f"{folder} is read-only")
    library = _compile(compiler, folder, of_compiler)
    try:
        return library, ctypes.CDLL(str(library))
    except OSError as error:
        raise NativeError(
            f"the compiled convolutions cannot be loaded: {error}; XDG_CACHE_HOME may name a "
            f"folder from which programs can be loaded, in place of {folder}"
        ) from error


def _digest(made_of: object) -> str:
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]


def _ingredients() -> str:
    """Return a digest of all that a library depends on, but for the compiler."""
    sources = (Path(__file__), SOURCE, *sorted(SOURCE.parent.glob("*.h")))
    texts = [source.read_bytes() for source in sources]
    jaxlib = importlib.metadata.version("jaxlib")
    return _digest((os.environ.get("CXX"), _processor(), jaxlib, texts))


def _processor() -> list[str]:
    """Return what tells this processor from others: its model and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: the host's name
        return list(platform.uname())
    fields = ("vendor", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
    return [platform.machine(), *sorted({line for line in lines if line.startswith(fields)})]


_CANDIDATES = ("c++", "g++", "clang++")


def _compiler() -> list[str]:
    """Return the words that start the compiler; an empty list if there is none."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise NativeError(f"CXX is not a command, {os.environ['CXX']!r}: {error}") from error
    candidates = [chosen] if chosen else [[name] for name in _CANDIDATES]
    return next((words for words in candidates if shutil.which(words[0])), [])


def _files(compiler: list[str]) -> list[tuple[str, int, int]]:
    """Return the compiler's programs with sizes and times, which change with its version."""
    paths = [os.path.realpath(path) for path in map(shutil.which, compiler) if path]
    return [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]


def _folder() -> Path:
    """Return a folder that only this user can write to."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # to be ignored, says its specification
        cache = os.path.expanduser("~/.cache")
    folder = Path(cache, "dcjax", "native")
    try:
        if not folder.is_absolute():
            raise OSError("the user has no home folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _refuse_strangers(folder)
    except OSError as error:
        return _temporary(str(error))
    return folder


def _refuse_strangers(folder: Path) -> None:
    if os.name != "posix":
        return
    # Groups may write to the folder above, as some systems have it: they cannot own the folder.
    for path, others in ((folder, 0o022), (folder.parent, 0o002)):
        mode, owner = path.stat().st_mode, path.stat().st_uid
        if mode & others or (path == folder and owner != os.getuid()):
            raise NativeError(
                f"expected a folder that only you (user {os.getuid()}) can write to, for code that "
                f"is loaded, got {path} of user {owner} with mode {stat.filemode(mode)}; remove "
                "it, or set XDG_CACHE_HOME to a folder of your own"
            )


def _temporary(why: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dcjax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        f"dcjax compiles its convolutions for this process alone: {why}; XDG_CACHE_HOME may name "
        "a folder that keeps them",
        stacklevel=2,
    )
    return folder


def _sweep(folder: Path) -> None:
    """Remove what compilations left that were killed; those that go on are younger."""
    for left in folder.glob("compiling-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 2 * PATIENCE:
                shutil.rmtree(left)


def _is_whole(library: Path) -> bool:
    """Return whether the bytes have the digest in the library's name; remove it otherwise."""
    with contextlib.suppress(OSError):
        if library.stem.endswith(hashlib.sha256(library.read_bytes()).hexdigest()):
            return True
        library.unlink()
    return False


def _compile(compiler: list[str], folder: Path, name: str) -> Path:
    with tempfile.TemporaryDirectory(
        prefix="compiling-", dir=folder, ignore_cleanup_errors=True
    ) as temporary:
        made = Path(temporary, "convolution.so")
        # -isystem silences warnings about jaxlib's headers.
        inputs = ["-shared", "-isystem", jax.ffi.include_dir(), str(SOURCE)]
        _run([*_command(compiler, temporary), *inputs, "-o", str(made)], temporary)
        with open(made, "rb+") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
            os.fsync(file.fileno())
        return made.replace(folder / f"{name}-{digest}.so")


def _command(compiler: list[str], temporary: str) -> list[str]:
    """Return the command that compiles for this processor."""
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    # Without aligned loops the same code is up to a tenth slower.
    words = [*compiler, "-std=c++17", "-O3", "-falign-loops=64", "-fPIC"]
    words.append("-march=native" if on_x86 else "-mcpu=native")
    macros = _run([*words, "-dM", "-E", "-x", "c++", os.devnull], temporary)
    # Every product and sum is rounded once, in every tile. Otherwise the zeros of a block-diagonal
    # kernel would change bits. GCC avoids fused multiplication and addition on some processors.
    words.append("-ffp-contract=fast")
    if on_x86 and "__clang__" not in macros:
        words.append("--param=avoid-fma-max-bits=0")
    if "__clang__" in macros and "__AVX512F__" in macros:
        words.append("-mprefer-vector-width=512")
    return words


def _run(command: list[str], temporary: str) -> str:
    """Return the output of a compiler that keeps its own files in the temporary folder."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        encoding="utf-8", errors="replace", start_new_session=True,
        env=os.environ | {"TMPDIR": temporary},
    ) as process:  # fmt: skip
        try:
            output, words = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            # The compiler's children too: they hold its pipes.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NativeError(
                    f"{shlex.join(command)} was given up after {PATIENCE} seconds; {_REMEDY}"
                ) from error
            raise
    if process.returncode:
        raise NativeError(
            f"{shlex.join(command)} failed with status {process.returncode}; {_REMEDY}. "
            f"It said:\n{words or output}"
        )
    return output
