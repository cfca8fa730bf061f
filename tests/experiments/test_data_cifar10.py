"""CIFAR-10: preparing without TensorFlow, reading, damage, and what happens without a network."""

import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest

from experiments import data
from experiments.data import cifar10_builder, download
from experiments.data.sources import cifar10
from experiments.data.sources.cifar10 import CLASSES
from experiments.data.types import NotAtHandError

ARCHIVE = "cifar-10-binary.tar.gz"
TRAIN_SHARD = "cifar10-train.array_record-00000-of-00001"
TEST_SHARD = "cifar10-test.array_record-00000-of-00001"
EACH = 20  # images in each of the archive's six files


def describe(path, url="http://127.0.0.1:9/"):
    content = path.read_bytes()
    return download.Archive(url + path.name, len(content), hashlib.sha256(content).hexdigest())


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
    with tarfile.open(path, "w:gz") as tar:
        for name, part in {**parts, "readme.html": b"", "test_batch.bin": records["test"]}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            content = bytes(part)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, archive):
    root = tmp_path_factory.mktemp("prepared")
    cifar10_builder.prepare(root, archive, CLASSES)
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        known = describe(archive, f"http://127.0.0.1:{free.getsockname()[1]}/")
        monkeypatch.setattr(cifar10, "official_archive", lambda: known)
        yield


@pytest.fixture
def host(monkeypatch, archive):
    """The archive's host, at work."""
    handler = functools.partial(QuietHandler, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        known = describe(archive, f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(cifar10, "official_archive", lambda: known)
        yield server
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


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


def test_the_archive_is_the_one_that_tfds_records(monkeypatch):
    monkeypatch.undo()
    known = cifar10.official_archive()
    assert known.name == ARCHIVE
    assert known.size == 170_052_171
    assert known.sha256.startswith("c4a38c50a1bc5f3a")


def test_version_is_the_stock_builders():
    assert str(cifar10_builder.cifar.Cifar10.VERSION) == cifar10.VERSION


def test_prepared_is_what_the_archive_holds(root, records):
    dataset = load(root)
    assert (dataset.name, dataset.classes) == ("cifar10", CLASSES)
    for name in ("train", "test"):
        split = getattr(dataset, name)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        expected = records[name].astype(np.int32)
        np.testing.assert_array_equal(in_any_order(split), expected[np.lexsort(expected.T)])


def test_tfds_itself_reads_what_was_prepared(root, records):
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.data_source("cifar10", split="test", data_dir=root, download=False)
    assert len(source) == EACH
    for example in source.__getitems__(range(EACH)):
        record = records["test"][int(example["id"].removeprefix(b"test_"))]
        assert example["label"] == record[0]
        image = example["image"].transpose(2, 0, 1).ravel()
        np.testing.assert_array_equal(image, record[1:])
    assert source.dataset_info.features["label"].names == list(CLASSES)


def test_prepared_data_is_found_first(root, monkeypatch):
    monkeypatch.setattr(download, "fetch", pytest.fail)
    assert load(root, "auto").name == "cifar10"


def test_data_directory_of_the_environment(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(load(None).test.labels) == EACH


def test_a_part_ofcifar10_is_not_passed_off_as_the_whole(root):
    told = []
    data.load("cifar10", data_dir=root, notify=told.append)
    assert "not the full one: {'train': 100, 'test': 20}" in told[1]


def test_download_prepare_and_read_without_noise(tmp_path, host, capfd):
    told = []
    dataset = data.load("cifar10", data_dir=tmp_path, notify=told.append)
    assert len(dataset.train.labels) == 5 * EACH
    assert [line.split()[0] for line in told] == ["downloading", "preparing", "reading", "note:"]
    assert capfd.readouterr() == ("", "")


def test_archive_at_hand_needs_no_network(tmp_path, archive):
    (tmp_path / "downloads").mkdir()
    shutil.copy(archive, tmp_path / "downloads")
    assert len(load(tmp_path).train.labels) == 5 * EACH


def test_wrong_archive_at_hand(tmp_path):
    path = tmp_path / "downloads" / ARCHIVE
    path.parent.mkdir()
    path.write_bytes(b"something else")
    refused(tmp_path, path, "14 bytes", name="auto")
    assert not (tmp_path / "cifar10").exists()


def test_without_networkcifar10_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(NotAtHandError) as error:
        load(tmp_path / "new")
    for words in (place(tmp_path / "new"), "refused", "--data-dir", "--dataset digits"):
        assert str(words) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_network_auto_gives_the_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert load(None, "auto").name == "digits"


def test_a_directory_that_was_named_is_meant(tmp_path):
    with pytest.raises(NotAtHandError, match="--dataset digits"):
        load(tmp_path / "misspelt", "auto")


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


def test_labels_out_of_range(root, monkeypatch):
    monkeypatch.setattr(cifar10, "CLASSES", CLASSES[:5])
    refused(root, place(root), "labels from 0 to 9")


def test_images_of_another_shape(root, monkeypatch):
    monkeypatch.setattr(cifar10, "SHAPE", (28, 28, 3))
    refused(root, place(root), "(32, 32, 3), expected (28, 28, 3)")


def test_prepared_in_a_format_of_tensorflow(root):
    edit_info(root, '"array_record"', '"tfrecord"')
    refused(root, place(root), "only TensorFlow reads", "--data-dir")


@pytest.mark.parametrize("below", ["cifar10", "cifar10/3.0.2"])
def test_data_directory_too_deep(root, below):
    refused(root / below, f"the one that holds cifar10: {root}")


def test_data_directory_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file; give a directory")


def test_data_directory_that_cannot_be_made(tmp_path, host):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "below", tmp_path / "file", "--data-dir", name="auto")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_preparation_leaves_nothing(tmp_path, host, monkeypatch, error):
    fromarray = cifar10_builder.Image.fromarray
    calls = iter(range(5 * EACH + 3))  # into the second split

    def failing(image):
        if next(calls, None) is None:
            raise error
        return fromarray(image)

    with monkeypatch.context() as patch:
        patch.setattr(cifar10_builder.Image, "fromarray", failing)
        with pytest.raises((KeyboardInterrupt, data.DataError)):
            load(tmp_path)
    assert list((tmp_path / "cifar10").iterdir()) == []
    assert len(load(tmp_path).train.labels) == 5 * EACH


def test_two_processes_may_prepare_at_once(tmp_path, host, pristine, monkeypatch):
    def quicker(root, archive, classes):
        shutil.copytree(pristine, root, dirs_exist_ok=True)
        raise OSError("directory not empty")

    monkeypatch.setattr(cifar10_builder, "prepare", quicker)
    assert len(load(tmp_path).train.labels) == 5 * EACH


def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path, archive):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    code = f"""
from pathlib import Path
from experiments import data
from experiments.data import cifar10_builder
cifar10_builder.prepare(Path({str(tmp_path)!r}), Path({str(archive)!r}), {CLASSES})
print(len(data.load("cifar10", data_dir={str(tmp_path)!r}).train.labels))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(5 * EACH)
    assert json.loads((place(tmp_path) / "dataset_info.json").read_text())["version"] == "3.0.2"
