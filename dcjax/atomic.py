"""Files that appear whole or not at all."""

import contextlib
import errno
import io
import os
import pathlib
import re
import stat
import uuid
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[io.BufferedIOBase]:
    """Open a new file that takes the path's place at the end of the context.

    The bytes are on the disk before that. If the body raises, the old file stays. The new file has
    the old one's mode and, if the system allows it, its group; a symbolic link stays, and the file
    that it leads to is replaced. What killed writers of the same path have left is deleted.

    Args:
      path: the file to make or replace; its folder must exist.

    Yields:
      A binary file beside the path, named `.NAME.*.tmp`.

    Raises:
      OSError: the file cannot be written, or the path is a folder, a FIFO or a device.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.txt")
    ...     with replacing(path) as file:
    ...         _ = file.write(b"whole")
    ...     path.read_text()
    'whole'
    """
    target = pathlib.Path(os.path.realpath(os.path.expanduser(path)))
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        reason = errno.EISDIR if stat.S_ISDIR(old.st_mode) else errno.EINVAL
        raise OSError(reason, f"{os.strerror(reason)} (not a regular file)", os.fspath(path))
    prefix = f".{target.name[:40]}."
    _sweep(target.parent, prefix)
    temporary = target.with_name(f"{prefix}{uuid.uuid4().hex}.tmp")
    try:
        with _locked(temporary, target) as file:
            yield file
            if old is not None:
                with contextlib.suppress(OSError, AttributeError):  # Windows has no groups
                    os.chown(temporary, -1, old.st_gid)
                os.chmod(temporary, stat.S_IMODE(old.st_mode))
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(temporary, target)  # still locked, so that nobody sweeps it away
    finally:
        temporary.unlink(missing_ok=True)


def _locked(path: pathlib.Path, target: pathlib.Path) -> io.BufferedIOBase:
    """Open a new file, locked until it is closed or the process dies; errors name the target.

    Another process can sweep the file away between its creation and its locking; then it is created
    again. File systems without locks are not swept.
    """
    while True:
        try:
            file = open(path, "xb")  # noqa: SIM115
        except OSError as error:  # the folder is not there, or its disk is full
            error.filename = os.fspath(target)
            raise
        if fcntl is None:
            return file
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _sweep(folder: pathlib.Path, prefix: str) -> None:
    """Delete the temporary files of this prefix whose writers are dead, as nobody locks them."""
    if fcntl is None:
        return
    name = re.compile(re.escape(prefix) + r"[0-9a-f]{32}\.tmp")
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if name.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                # Not if it is locked, somebody else's, or swept by another process meanwhile.
                with contextlib.suppress(OSError), open(path, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
