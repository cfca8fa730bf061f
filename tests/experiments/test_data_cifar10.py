"""CIFAR-10: prepared or downloaded, damaged, and without a network."""

import contextlib
import gc
import hashlib
import io
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import requests  # noqa: F401  # importing it must not count as the host's silence

from experiments import data
from experiments.data import cifar
from experiments.data.sources import cifar10, cifar100
from experiments.data.types import NotAtHandError, moments
from tests.experiments.prepared import prepare

# pooch leaves the socket of a download that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ARCHIVE = "cifar-10-binary.tar.gz"
TRAIN_SHARD = "cifar10-train.array_record-00000-of-00001"
TEST_SHARD = "cifar10-test.array_record-00000-of-00001"
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
EACH = 20  # images in each of the archive's six files


@pytest.fixture(scope="module")
def records():
    """The archive's records: 100 for training, 20 for the test."""
    records = np.random.default_rng(0).integers(0, 256, (6 * EACH, 3073), np.uint8)
    records[:, 0] %= 10
    return {"train": records[: 5 * EACH], "test": records[5 * EACH :]}


@pytest.fixture(scope="module")
def archive(tmp_path_factory, records):
    """An archive of the same make as the official one, of noise."""
    path = tmp_path_factory.mktemp("archive") / ARCHIVE
    parts = {f"data_batch_{i + 1}.bin": records["train"][EACH * i :][:EACH] for i in range(5)}
    others = {"readme.html": b"", "batches.meta.txt": "\n".join([*CLASSES, ""]).encode()}
    with tarfile.open(path, "w:gz") as tar:
        for name, part in {**parts, **others, "test_batch.bin": records["test"]}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            content = bytes(part)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, records):
    root = tmp_path_factory.mktemp("prepared")
    prepare(root, records, CLASSES)
    return root


@pytest.fixture
def root(tmp_path, pristine):
    """A data directory of one's own with prepared data."""
    shutil.copytree(pristine, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, archive):
    """The archive's host is a port where nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(cifar, "TIMEOUT", 1)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{ARCHIVE}"
        official = cifar10.ARCHIVE._replace(url=url, sha256=sha256)
        monkeypatch.setattr(cifar10, "ARCHIVE", official)
        yield
    gc.collect()  # here, and not in another module's test


@pytest.fixture
def host(monkeypatch, archive):
    """Start the archive's host, which answers every request in a way of its own."""

    @contextlib.contextmanager
    def started(behaviour):
        end = threading.Event()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):  # the other side may have given up
                    while self.rfile.readline() not in (b"\r\n", b""):
                        pass
                    behaviour(self.wfile.write, archive.read_bytes(), end.wait)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
            url = f"http://127.0.0.1:{server.server_address[1]}/{ARCHIVE}"
            monkeypatch.setattr(cifar10, "ARCHIVE", cifar10.ARCHIVE._replace(url=url))
            try:
                yield
            finally:
                end.set()
                server.shutdown()

    return started


HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def whole_archive(send, content, wait):
    send(HEADER % len(content) + content)


def silent(send, content, wait):
    wait()


def missing(send, content, wait):
    send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def of_other_content(send, content, wait):
    send(HEADER % len(content) + content[::-1])


def broken_off(send, content, wait):
    send(HEADER % len(content) + content[: len(content) // 2])


def stalling(send, content, wait):
    send(HEADER % len(content) + content[: len(content) // 2])
    wait()


def load(root, name="cifar10"):
    return data.load(name, data_dir=root, notify=lambda _: None)


def refused(root, *said, name="cifar10"):
    """Loading raises a DataError that says all that; it is no reason for a stand-in."""
    with pytest.raises(data.DataError) as error:
        load(root, name)
    assert not isinstance(error.value, NotAtHandError)
    for words in said:
        assert str(words) in str(error.value)


def place(root):
    return root / "cifar10" / "3.0.2"


def edit_info(root, old, new):
    path = place(root) / "dataset_info.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def in_any_order(split):
    rows = np.column_stack([split.labels, split.images.transpose(0, 3, 1, 2).reshape(-1, 3072)])
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize(("source", "stock"), [(cifar10, "Cifar10"), (cifar100, "Cifar100")])
def test_the_archives_are_those_that_tfds_records(source, stock, monkeypatch):
    from tensorflow_datasets.image_classification import cifar as tfds_cifar

    monkeypatch.undo()
    official = source.ARCHIVE
    urls = getattr(tfds_cifar, stock).url_infos
    assert urls[official.url].checksum == official.sha256


def test_the_class_of_cifar100_is_the_second_label():
    pool = cifar._pool(cifar100.ARCHIVE, bytes([7, 42, *range(256)] + [0] * (3072 - 256)))
    assert pool.labels.tolist() == [42]
    assert pool.read(np.array([0]), None)[0, 0, :3, 0].tolist() == [0, 1, 2]


def test_whatever_part_is_used_the_statistics_are_of_all(root, host, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = load(root)
    mean, std = moments(whole.train.images)
    (tmp_path / "other").mkdir()
    with host(whole_archive):
        parts = [
            data.load("cifar10", data_dir=d, train_size=30, notify=lambda _: None)
            for d in (root, root, tmp_path / "other")
        ]
    for part in parts:
        assert len(part.train.labels) == 30
        np.testing.assert_array_equal(part.mean, mean)
        np.testing.assert_array_equal(part.std, std)


def test_only_what_is_used_is_decoded(root, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened, decoded = cifar.prepared.Image.open, []
    monkeypatch.setattr(
        cifar.prepared.Image, "open", lambda file: decoded.append(1) or opened(file)
    )
    counts = []
    for _ in range(2):
        decoded.clear()
        data.load("cifar10", data_dir=root, train_size=30, notify=lambda _: None)
        counts.append(len(decoded))
    assert counts == [30 + EACH + 5 * EACH, 30 + EACH]  # the first time all, for the statistics


def test_prepared_is_what_the_archive_holds(root, records):
    dataset = load(root)
    assert (dataset.name, dataset.classes) == ("cifar10", CLASSES)
    for name in ("train", "test"):
        split = getattr(dataset, name)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        expected = records[name].astype(np.int32)
        np.testing.assert_array_equal(in_any_order(split), expected[np.lexsort(expected.T)])


def test_prepared_data_is_found_first(root):
    assert load(root, "auto").name == "cifar10"


def test_data_directory_of_the_environment(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(load(None).test.labels) == EACH


def test_download_and_read(tmp_path, host, records):
    with host(whole_archive):
        dataset = load(tmp_path)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(split.labels, records[name][:, 0])
        planes = split.images.transpose(0, 3, 1, 2).reshape(-1, 3072)
        np.testing.assert_array_equal(planes, records[name][:, 1:])
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [ARCHIVE]
    assert len(load(tmp_path).test.labels) == EACH  # with no network


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (silent, "timed out"),
        (missing, "404"),
        (of_other_content, "SHA256"),
        (broken_off, "more expected"),
        (stalling, "timed out"),
    ],
)
def test_a_download_that_fails_is_told_in_time_and_leaves_nothing(tmp_path, host, behaviour, said):
    start = time.monotonic()
    with host(behaviour), pytest.raises(NotAtHandError, match=said):
        load(tmp_path)
    assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_archive_is_replaced(tmp_path, host):
    path = tmp_path / "downloads" / ARCHIVE
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(NotAtHandError):
        load(tmp_path)
    assert path.read_bytes() == b"something else"
    with host(whole_archive):
        assert len(load(tmp_path).test.labels) == EACH


def test_an_interrupted_download_leaves_nothing(tmp_path, host, monkeypatch):
    def interrupt(*_, **__):
        assert list((tmp_path / "downloads").iterdir())  # something had been begun
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.core.hash_matches", interrupt)
    with host(whole_archive), pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_network_cifar10_is_refused(tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(NotAtHandError) as error:
        load(tmp_path / "new")
    for words in (tmp_path / "new", "refused", "--data-dir", "--dataset digits"):
        assert str(words) in str(error.value)


def test_without_network_auto_gives_the_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert load(None, "auto").name == "digits"


def test_a_directory_that_was_named_is_meant(tmp_path):
    with pytest.raises(NotAtHandError, match="--dataset digits"):
        load(tmp_path / "misspelt", "auto")
    assert not (tmp_path / "misspelt").exists()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("shard", [TRAIN_SHARD, TEST_SHARD])
@pytest.mark.parametrize("damage", [truncate, flip, empty, os.remove])
def test_damaged_shard_is_named(root, damage, shard):
    damage(place(root) / shard)
    refused(root, place(root) / shard, f"Remove {place(root)}", name="auto")


@pytest.mark.parametrize("count", ["19", "21"])
def test_shard_of_another_length_is_named(root, count):
    edit_info(root, '"20"', f'"{count}"')
    refused(root, place(root) / TEST_SHARD, f"20 records, dataset_info.json says {count}")


@pytest.mark.parametrize("damage", [truncate, empty, os.remove])
def test_damaged_description(root, damage):
    damage(place(root) / "dataset_info.json")
    refused(root, place(root), "is damaged", f"Remove {place(root)}")


def test_labels_out_of_range(root):
    names = place(root) / "label.labels.txt"
    names.write_text("\n".join(CLASSES[:5]))
    features = place(root) / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "10"', '"numClasses": "5"'))
    refused(root, place(root), "an image has the label")


def test_images_of_another_shape(root):
    features = place(root) / "features.json"
    features.write_text(features.read_text().replace('"32"', '"28"'))
    refused(root, place(root), "shape (32, 32), expected (28, 28)")


def test_prepared_in_a_format_that_is_not_read(root):
    edit_info(root, '"array_record"', '"riegeli"')
    refused(root, place(root), "expected array_record or tfrecord", "--data-dir")


def test_data_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for below in ("file", "file/below"):
        said = f"{tmp_path / 'file'} is a file"
        refused(tmp_path / below, said, "--data-dir", name="auto")


def test_tensorflow_is_not_imported_even_where_it_is_installed(root, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    code = f"""
from experiments import data
print(len(data.load("cifar10", data_dir={str(root)!r}).train.labels))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(5 * EACH)
