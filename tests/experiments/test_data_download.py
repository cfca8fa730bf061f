"""Downloads from hosts that are whole, slow, silent, wrong or broken, all on 127.0.0.1."""

import contextlib
import hashlib
import socket
import socketserver
import threading
import time

import pytest
import requests  # noqa: F401  # importing it must not count as the host's silence

from experiments.data import download
from experiments.data.download import Archive, DownloadError, fetch

CONTENT = bytes(range(256)) * 500
HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def whole(send, wait):
    send(HEADER % len(CONTENT) + CONTENT)


def without_length(send, wait):
    send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CONTENT)


def labelled_as_compressed(send, wait):
    head = HEADER % len(CONTENT)
    send(head.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + CONTENT)


def slow(send, wait):
    send(HEADER % len(CONTENT) + CONTENT[:1])
    for i in range(1, len(CONTENT), 20_000):
        time.sleep(0.25)
        send(CONTENT[i : i + 20_000])


def silent(send, wait):
    wait()


def trickling_headers(send, wait):
    send(b"HTTP/1.1 200 OK\r\n")
    for i in range(20):
        time.sleep(0.1)
        send(b"X-%d: x\r\n" % i)


def missing(send, wait):
    send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def of_another_length(send, wait):
    send(HEADER % 99 + b"x" * 99)


def of_other_content(send, wait):
    send(HEADER % len(CONTENT) + CONTENT[::-1])


def broken_off(send, wait):
    send(HEADER % len(CONTENT) + CONTENT[: len(CONTENT) // 2])


def stalling(send, wait):
    send(HEADER % len(CONTENT) + CONTENT[: len(CONTENT) // 2])
    wait()


def archive_at(port):
    url = f"http://127.0.0.1:{port}/some/archive.bin"
    return Archive(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@contextlib.contextmanager
def host(behaviour):
    """A host that answers every request so; gives the archive it is asked for."""
    end = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):  # the other side may have given up
                while self.rfile.readline() not in (b"\r\n", b""):
                    pass
                behaviour(self.wfile.write, end.wait)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield archive_at(server.server_address[1])
        finally:
            end.set()
            server.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(download, "STALL_SECONDS", 1.5)


@pytest.mark.parametrize("behaviour", [whole, without_length, labelled_as_compressed, slow])
def test_what_arrives_is_the_archive_alone(tmp_path, behaviour):
    path, told = tmp_path / "new" / "archive.bin", []
    with host(behaviour) as archive:
        fetch(archive, path, told.append)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert len(told) == 1
    assert archive.url in told[0]


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (silent, "no answer within 1 seconds"),
        (trickling_headers, "no answer within 1 seconds"),
        (missing, "404"),
        (of_another_length, "offers 99 bytes instead of 128000"),
        (of_other_content, "SHA-256"),
        (broken_off, "64000"),
        (stalling, "timed out"),
    ],
)
def test_what_fails_is_told_in_time_and_leaves_nothing(tmp_path, behaviour, said):
    with host(behaviour) as archive:
        start = time.monotonic()
        with pytest.raises(DownloadError, match=said):
            fetch(archive, tmp_path / "archive.bin")
        assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="refused"):
            fetch(archive_at(free.getsockname()[1]), tmp_path / "archive.bin")


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    class Interrupted(list):
        def __enter__(self):
            assert list(tmp_path.iterdir())  # something had been begun
            raise KeyboardInterrupt

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(download, "bar", lambda *_: Interrupted())
    with host(whole) as archive, pytest.raises(KeyboardInterrupt):
        fetch(archive, tmp_path / "archive.bin")
    assert list(tmp_path.iterdir()) == []
