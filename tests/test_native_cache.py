"""The folder of compiled convolutions, with compilers that fail, hang or are gone."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dcjax.native import NativeError, _build, build

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes, signals and shell scripts")

COPY = 'for made; do :; done; cp "{library}" "$made"'


@pytest.fixture(scope="module")
def library():
    try:
        return build()
    except NativeError as error:
        pytest.skip(str(error))


class Compiler:
    """A shell script in the compiler's place, fast and countable."""

    def __init__(self, folder, library):
        self.path, self.log = folder / "cxx", folder / "log"
        self.library = library
        self.does(COPY)

    def does(self, lines):
        """Run these lines to compile, and nothing to tell the macros."""
        self.path.write_text(
            f'#!/bin/sh\ncase "$*" in *" -E "*) exit 0;; esac\necho run >> "{self.log}"\n'
            + lines.format(library=self.library)
            + "\n"
        )
        self.path.chmod(0o755)

    @property
    def runs(self):
        return len(self.log.read_text().split()) if self.log.exists() else 0


@pytest.fixture
def compiler(monkeypatch, tmp_path, library):
    found = Compiler(tmp_path, library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(found.path))
    return found


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "dcjax" / "native"


def load():
    """Load as a new process would; registering twice in one process is an error of XLA."""
    return _build._loaded()[0]


def register():
    return _build._registered.__wrapped__()


def test_a_library_is_compiled_once_into_a_private_folder(compiler, folder):
    made = load()
    assert load() == made
    assert compiler.runs == 1
    assert [*folder.iterdir()] == [made]
    assert folder.stat().st_mode & 0o777 == 0o700


DAMAGE = {
    "cut": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
    "one byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "one bit": lambda path: path.write_bytes(b"\x7e" + path.read_bytes()[1:]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "another's bytes": lambda path: path.write_bytes(pathlib.Path(sys.executable).read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_library_is_compiled_again(damage, compiler):
    made = load()
    whole = made.read_bytes()
    damage(made)
    assert load() == made
    assert made.read_bytes() == whole
    assert compiler.runs == 2


def test_a_process_survives_a_library_that_was_cut(compiler):
    os.truncate(load(), 1000)
    code = "import dcjax; print(dcjax.native.build().stat().st_size)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) == compiler.library.stat().st_size


def test_a_damaged_library_and_no_compiler(compiler):
    os.truncate(load(), 1000)
    compiler.path.unlink()
    with pytest.raises(NativeError, match=r"expected a C\+\+ compiler, found none of .*cxx; inst"):
        load()


def test_a_kept_library_needs_no_compiler(compiler):
    made = load()
    compiler.path.unlink()
    assert load() == made


def another_processor(monkeypatch, compiler):
    monkeypatch.setattr(_build, "_processor", lambda: ["another"])


def another_jaxlib(monkeypatch, compiler):
    monkeypatch.setattr(_build.importlib.metadata, "version", lambda name: "0.0")


def other_flags(monkeypatch, compiler):
    monkeypatch.setenv("CXX", f"{compiler.path} -mno-avx512f")


def another_version(monkeypatch, compiler):
    compiler.does(COPY + "; exit 0")


def other_sources(monkeypatch, compiler):
    source = compiler.path.with_name("convolution.cc")
    source.write_text("// other code")
    monkeypatch.setattr(_build, "SOURCE", source)


@pytest.mark.parametrize(
    "change", [another_processor, another_jaxlib, other_flags, another_version, other_sources]
)
def test_a_library_of_others_is_never_loaded(change, monkeypatch, compiler):
    made = load()
    with monkeypatch.context() as patch:
        change(patch, compiler)
        assert load() != made
        assert compiler.runs == 2
        compiler.path.unlink()
        if change is not another_version:
            assert load() != made


def test_the_processor_has_a_name_on_every_system(monkeypatch):
    here = _build._processor()
    assert len(here) > 2
    monkeypatch.setattr(_build, "Path", lambda *_: pathlib.Path("/no/such/file"))
    assert _build.platform.node() in _build._processor()


def test_a_library_that_cannot_be_loaded_here_is_compiled_again(compiler, folder):
    """As one that was left in a shared home by a system with newer libraries."""
    compiler.does('for made; do :; done; echo "not a library" > "$made"')
    with pytest.raises(NativeError, match=r"cannot be loaded: .*XDG_CACHE_HOME may name"):
        load()
    foreign = [*folder.glob("*.so")]
    compiler.does(COPY)
    os.utime(compiler.path, ns=(0, 0))
    assert load() not in foreign


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(mode, compiler, folder):
    load()
    folder.chmod(mode)
    with pytest.raises(NativeError, match=r"that only you .*; remove it, or set XDG_CACHE_HOME"):
        load()
    folder.chmod(0o755)
    load()
    folder.parent.chmod(0o777)
    with pytest.raises(NativeError, match=r"drwxrwxrwx; remove it"):
        load()


def test_a_folder_of_another_user_is_refused(monkeypatch, compiler, folder):
    load()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(NativeError, match=r"got .*native of user \d+ with mode drwx------"):
        load()


@pytest.mark.parametrize("cache", ["/proc/none", "/dev/null", "/dev/null/x", "/" + 300 * "x"])
def test_where_no_folder_can_be_made_a_temporary_one_serves(cache, compiler, monkeypatch, tmp_path):
    if not pathlib.Path("/proc/self").exists():
        pytest.skip("no folder that even root cannot write to")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setattr(_build.tempfile, "tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match=r"for this process alone: .*XDG_CACHE_HOME may name"):
        made = load()
    assert made.parent.parent == tmp_path
    assert made.parent.stat().st_mode & 0o777 == 0o700


def test_a_read_only_folder_serves_for_reading(compiler, monkeypatch, folder):
    made = load()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    assert load() == made
    made.unlink()
    with pytest.warns(UserWarning, match=r"native is read-only"):
        assert load().parent != folder


def test_a_temporary_folder_is_removed_at_the_end(compiler, tmp_path):
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import dcjax; print(dcjax.native.build())"
    )
    here = tmp_path / "temporary"
    here.mkdir()
    own = {"XDG_CACHE_HOME": "/proc/none", "TMPDIR": str(here)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env=os.environ | own, check=True,
    )  # fmt: skip
    assert str(here) in ran.stdout
    assert [*here.iterdir()] == []


@pytest.mark.parametrize("cache", ["relative/x", "~/x", ""])
def test_a_cache_that_is_not_absolute_is_ignored(cache, compiler, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load().is_relative_to(tmp_path / "home" / ".cache" / "dcjax")
    assert not (tmp_path / "relative").exists()
    assert not (tmp_path / "~").exists()


def test_a_user_without_a_home_gets_a_temporary_folder(compiler, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a uid without a name
    with pytest.warns(UserWarning, match="no home folder"):
        load()


BROKEN = {
    "writes nothing": ("true", "No such file"),
    "no library": ('for made; do :; done; echo x > "$made"', "cannot be loaded: .*x"),
    "words": ("echo its words >&2; exit 3", r"status 3; install(.|\n)*It said:\nits words"),
    "words on stdout": ("echo its words; exit 1", r"It said:\nits words"),
    "bytes": (r"printf 'a\377b' >&2; exit 1", "a\N{REPLACEMENT CHARACTER}b"),
    "killed": ("kill -9 $$", "status -9"),
    "reads its input": ("cat; exit 1", "status 1"),
}


@pytest.mark.parametrize(("lines", "message"), BROKEN.values(), ids=BROKEN)
def test_only_native_errors_come_out_with_the_compiler_s_words(lines, message, compiler, folder):
    compiler.does(lines)
    with pytest.raises(NativeError, match=message):
        register()
    assert [*folder.glob("compiling-*")] == []


def test_a_library_without_the_functions_is_an_error_too(compiler):
    compiler.library = pathlib.Path(__import__("_ctypes").__file__)
    compiler.does(COPY)
    with pytest.raises(NativeError, match="dcjax_convolution_forward"):
        register()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-compiler", r"found none of no-such-compiler; install a C\+\+17"),
        ("/etc/passwd", "found none of /etc/passwd"),
        ("/tmp", "found none of /tmp"),
        ("g++ '-O2", r"CXX is not a command, .*: No closing quotation"),
        ("false", r"false .* failed with status 1; install"),
    ],
)
def test_commands_that_are_none(command, message, compiler, monkeypatch):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(NativeError, match=message):
        register()


def test_a_program_that_the_system_cannot_start(compiler):
    compiler.path.write_bytes(b"\x7fELF")
    with pytest.raises(NativeError, match="Exec format error"):
        register()


def is_running(process):
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_compiler_that_hangs_is_given_up_with_its_children(compiler, monkeypatch, folder):
    child = compiler.path.with_name("child")
    compiler.does(f'sleep 60 & echo $! > "{child}"; wait')
    monkeypatch.setattr(_build, "PATIENCE", 1)
    with pytest.raises(NativeError, match=r"cxx .* given up after 1 seconds; install"):
        register()
    deadline = time.monotonic() + 10
    while is_running(int(child.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(child.read_text()))
    assert [*folder.iterdir()] == []


def test_an_interrupt_ends_the_compiler(compiler, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    compiler.does("sleep 60")
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        register()
    assert time.monotonic() - begun < 30


def test_a_kill_while_compiling_leaves_nothing_that_stays(compiler, monkeypatch, folder):
    compiler.does("sleep 5")
    process = subprocess.Popen([sys.executable, "-c", "import dcjax; dcjax.native.build()"])
    while not compiler.runs and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = folder.iterdir()
    assert left.name.startswith("compiling-")
    compiler.does(COPY)
    made = load()
    assert left.exists()  # as if it went on: it is young
    old = time.time() - 3 * _build.PATIENCE
    os.utime(left, (old, old))
    assert load() == made
    assert [*folder.iterdir()] == [made]


def test_the_library_is_synced_before_it_gets_its_name(compiler, monkeypatch, folder):
    synced, sync = [], os.fsync

    def fsync(descriptor):
        synced.append([*folder.glob("*.so")])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    load()
    assert synced == [[]]


def test_nowhere_to_write_is_a_native_error(compiler, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr(_build.tempfile, "tempdir", "/dev/null")
    with pytest.raises(NativeError, match=r"cannot be kept or loaded: .*/dev/null"):
        register()


def test_a_warning_that_is_an_error_is_a_native_error(compiler, monkeypatch):
    """As the tests have it: `filterwarnings = error`."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(NativeError, match="for this process alone"):
        register()
