"""load on files that were damaged, and on files that were forged: refused, in little memory."""

import hashlib
import io
import json
import math
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import dcjax
from dcjax._files.formats import format_of
from dcjax._files.manifest import DTYPES
from tests.test_save import SUFFIXES, assert_same, both, everything


class Damage:
    """A file of `everything()` and damaged ones, each in the place of the one before."""

    def __init__(self, path):
        dcjax.save(path, everything())
        self.path, self.data, self.expected = path, path.read_bytes(), everything()
        self.file = path.open("r+b", buffering=0)  # opening it each time would take longer

    def is_refused(self, data):
        """Whether it is; what comes back otherwise is what was saved."""
        self.file.seek(0)
        self.file.write(data)
        self.file.truncate()
        try:
            got = dcjax.load(self.path)
        except dcjax.FileError:
            return True
        assert_same(got, self.expected)
        return False


@pytest.fixture(params=SUFFIXES)
def damage(request, tmp_path):
    damage = Damage(tmp_path / f"a{request.param}")
    yield damage
    damage.file.close()


def meaningful(path, data):
    """The places of the bytes that mean something: the members of a zip, all of a safetensors."""
    if path.suffix == ".safetensors":
        return set(range(len(data)))
    places = set()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            lengths = data[info.header_offset + 26 : info.header_offset + 30]
            start = info.header_offset + 30 + sum(np.frombuffer(lengths, "<u2"))
            places.update(range(start, start + info.file_size))
    return places


def test_every_byte_changed(damage):
    rng, passed = np.random.default_rng(0), set()
    for place in range(len(damage.data)):
        changed = bytearray(damage.data)
        changed[place] ^= int(rng.choice([1, 2, 4, 8, 16, 32, 64, 128, 255]))
        if not damage.is_refused(changed):
            passed.add(place)
    assert not passed & meaningful(damage.path, damage.data)
    assert len(passed) < 0.2 * len(damage.data)


def test_every_length_cut(damage):
    for length in range(0, len(damage.data), 2):
        assert damage.is_refused(damage.data[:length])


def test_pieces_moved_and_lost(damage):
    rng, data = np.random.default_rng(0), damage.data
    for kind in range(600):
        i, j, n = (int(k) for k in rng.integers(0, len(data), 3))
        n = 1 + n % 64
        changed = bytearray(data)
        changed[i : i + n] = (data[j : j + n], rng.bytes(n), b"")[kind % 3]
        damage.is_refused(changed)


# Forgery: files whose digests are right.


def forge(path, change):
    """Save `everything()`, let `change(document, arrays)` change it, and write it sealed anew."""
    form = format_of(path)
    dcjax.save(path, everything())
    with path.open("rb") as file:
        text, arrays = form.read(file)
        document = json.loads(text[64:])
        sizes = dict(sizes_in(document["tree"]))
        arrays = {name: read(sizes[name]) for name, read in arrays.items()}
    changed = change(document, arrays)
    body = changed if isinstance(changed, str) else json.dumps(document)
    with path.open("wb") as file:
        form.write(file, hashlib.sha256(body.encode()).hexdigest() + body, arrays)


def sizes_in(node):
    """The names and sizes of all arrays of a description."""
    if "array" in node:
        yield node["array"], math.prod(node["shape"]) * DTYPES[node["dtype"]].itemsize
    for child in (*node.get("dict", {}).values(), *filter(None, [node.get("stacked")])):
        yield from sizes_in(child)


def layout_in(document):
    return document["tree"]["dict"]["p"]["layout"]


def set_layout(**values):
    return lambda document, _: layout_in(document).update(values)


def set_leaf(index, **values):
    return lambda document, _: layout_in(document)["leaves"][index].update(values)


def set_axis(repeat, runs):
    """The axis of length 2 of the bias."""
    return set_leaf(0, axes=[{"repeat": repeat, "runs": runs}])


def set_array(key="key", **values):
    return lambda document, _: document["tree"]["dict"][key].update(values)


def same_array_twice(document, arrays):
    document["tree"]["dict"]["again"] = document["tree"]["dict"]["key"]


def array_missing(document, arrays):
    del arrays["key"]


def leaf_twice(document, arrays):
    layout_in(document)["leaves"] *= 2


FORGERIES = {
    "no sub-network": (set_layout(subnets=0), "not a layout"),
    "fewer sub-networks": (set_layout(subnets=1), r"bias: expected .*\(1, 2\), got"),
    "minus one": (set_layout(subnets=-1), "not a layout"),
    "true": (set_layout(subnets=True), "not a layout"),
    "a float": (set_layout(subnets=2.0), "not a layout"),
    "a huge number": (set_layout(subnets=10**30), "bias: expected"),
    "no list": (set_layout(leaves={}), "not a layout"),
    "another entry": (set_layout(more=1), "not a layout"),
    "no leaves": (set_layout(leaves=[]), "bias: not expected"),
    "a leaf twice": (leaf_twice, "not a layout"),
    "a path of numbers": (set_leaf(0, path=[0]), "not a layout"),
    "another path": (set_leaf(0, path=["b"]), "b: missing"),
    "head no bool": (set_leaf(0, head=1), "not a layout"),
    "more axes": (set_leaf(0, axes=[]), r"expected .*\(2,\), got"),
    "longer axis": (set_axis(3, [[1, False]]), r"expected .*\(2, 3\), got"),
    "minus two runs": (set_axis(-1, [[2, False]]), "not a layout"),
    "negative units": (set_axis(1, [[3, False], [-1, False]]), "not a layout"),
    "zero units": (set_axis(1, [[2, False], [0, False]]), "not a layout"),
    "units a bool": (set_axis(2, [[True, False]]), "not a layout"),
    "a run of three": (set_axis(2, [[1, False, 1]]), "not a layout"),
    "no normal form": (set_axis(1, [[1, False], [1, False]]), "not a layout"),
    "no normal form, shared": (set_axis(2, [[1, True]]), "not a layout"),
    "a huge repeat": (
        set_axis(10**12, [[1, True], [1, False], [1, True]]),
        "not a layout",
    ),
    "another dtype": (set_array(dtype="int8"), r"not a int8\[2\]"),
    "an object dtype": (set_array(dtype="object"), r"not a object\[2\]"),
    "a pickle dtype": (set_array(dtype="O"), r"not a O\[2\]"),
    "another shape": (set_array(shape=[3]), r"not a uint32\[3\]"),
    "a huge shape": (set_array(shape=[10**15]), "not a uint32"),
    "a negative shape": (set_array(shape=[-1, -2]), "not a uint32"),
    "another digest": (
        set_array(sha256="0" * 64),
        r"key: the array does not match its SHA-256",
    ),
    "an unknown generator": (set_array(impl="pickle"), "unrecognized PRNG"),
    "another generator": (set_array(impl="rbg"), "invalid PRNG key data"),
    "a generator of another kind": (set_array(impl=3), "malformed"),
    "another name": (set_array(array="p"), "key: .*'p' is missing, used twice"),
    "an array twice": (same_array_twice, "used twice"),
    "an array missing": (array_missing, "key: .*array 'key' is missing"),
    "an array more": (lambda _, arrays: arrays.update(x=np.ones(2)), "not have these arrays"),
    "another version": (lambda document, _: document.update(version=2), "version 1"),
    "no tree": (lambda document, _: document.pop("tree") and None, "malformed"),
    "an unknown node": (lambda document, _: document.update(tree={"tuple": []}), "malformed"),
    "a node of two kinds": (set_array(dict={}), "malformed"),
    "nested too deeply": (lambda *_: '{"version": 1, "tree": ' + "[" * 10**6, "Recursion|Memory"),
    "deep dicts": (
        lambda *_: '{"version":1,"tree":' + '{"dict":{"a":' * 400 + "0" + "}}" * 400 + "}",
        "malformed|Recursion",
    ),
    "no JSON": (lambda *_: "[", "Expecting value"),
    "a list": (lambda *_: "[]", "version 1"),
    "a number of many digits": (lambda *_: '{"version": ' + "9" * 10**5 + "}", "digits"),
}


@both
@pytest.mark.parametrize("name", FORGERIES)
def test_forged_descriptions(suffix, name, tmp_path):
    change, words = FORGERIES[name]
    forge(tmp_path / f"a{suffix}", change)
    with pytest.raises(dcjax.FileError, match=words):
        peak_of_loading(tmp_path / f"a{suffix}")


def test_a_bool_of_two_is_true(tmp_path):
    def two(document, arrays):
        entry = document["tree"]["dict"][""]["dict"]["a/b"]
        arrays[entry["array"]] = np.array([2, 0], np.uint8)
        entry["sha256"] = hashlib.sha256(b"\2\0").hexdigest()

    forge(tmp_path / "a.npz", two)
    assert_same(dcjax.load(tmp_path / "a.npz"), everything())


@both
def test_the_forger_changes_nothing_else(suffix, tmp_path):
    forge(tmp_path / f"a{suffix}", lambda document, arrays: None)
    assert_same(dcjax.load(tmp_path / f"a{suffix}"), everything())


def peak_of_loading(path):
    """Loads, and checks that this did not take much more memory than the file has."""
    size = path.stat().st_size
    tracemalloc.start()
    try:
        return dcjax.load(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 * size + 2**22


class Mark:
    """Its pickle makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def npy(header, data=b""):
    header = header.encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def described(descr="'<f4'", fortran="False", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


NPY = {
    "a shape of terabytes": npy(described(shape="(1000000000000,)"), bytes(8)),
    "an overflowing shape": npy(described(shape="(9223372036854775808, 2)"), bytes(8)),
    "more axes than numpy has": npy(described(shape=f"({'1, ' * 100})"), bytes(4)),
    "a negative shape": npy(described(shape="(-2,)"), bytes(8)),
    "fortran order": npy(described(fortran="True"), bytes(8)),
    "an object": npy(described(descr="'|O'"), bytes(8)),
    "a structured dtype": npy(described(descr="[('a', '<f4')]"), bytes(8)),
    "too little": npy(described(), bytes(7)),
    "too much": npy(described(), bytes(9)),
    "code": npy("__import__('os').abort()\n"),
    "nested parentheses": npy("(" * 60_000),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("name", NPY)
@pytest.mark.parametrize("member", ["p/bias.npy", "dcjax.json.npy", "more.npy"])
def test_forged_members(name, member, tmp_path):
    path = tmp_path / "a.npz"
    dcjax.save(path, everything())
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for filename, data in {**members, member: NPY[name]}.items():
            archive.writestr(filename, data)
    with pytest.raises(dcjax.FileError, match="is damaged, or not a file of"):
        peak_of_loading(path)


def test_no_pickle_is_read(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "a.npz"
    objects = np.array([Mark(marker)], dtype=object)
    path.write_bytes(pickle.dumps(Mark(marker)))
    for _ in range(2):
        with pytest.raises(dcjax.FileError):
            dcjax.load(path)
        np.savez(path, **{"dcjax.json": objects, "x": objects})
    forge(path, lambda document, arrays: None)
    with zipfile.ZipFile(path, "a") as archive:
        file = io.BytesIO()
        np.save(file, objects, allow_pickle=True)
        archive.writestr("x.npy", file.getvalue())
    with pytest.raises(dcjax.FileError, match="does not have these arrays"):
        dcjax.load(path)
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as archive:
        archive["x"][0].close()
    assert marker.exists()  # so the files would have done it


def test_zip_bombs(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(2**25, np.uint8))
    with pytest.raises(dcjax.FileError, match="compressed"):
        peak_of_loading(path)
    # One member's bytes, named by many entries of the directory.
    data = bytearray(_zip_of({f"{i}.npy": bytes(10_000 if i == 0 else 0) for i in range(50)}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    for _ in range(50):
        data[start + 20 : start + 28] = (10_000).to_bytes(4, "little") * 2
        lengths = [int.from_bytes(data[start + k : start + k + 2], "little") for k in (28, 30, 32)]
        start += 46 + sum(lengths)
    path.write_bytes(data)
    with pytest.raises(dcjax.FileError, match="larger than the file"):
        peak_of_loading(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_zips(tmp_path):
    path = tmp_path / "a.npz"
    dcjax.save(path, everything())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("key.npy", archive.read("key.npy"))
    with pytest.raises(dcjax.FileError, match="same name"):
        dcjax.load(path)
    np.savez(path, x=np.ones(2))
    with pytest.raises(dcjax.FileError, match=r"dcjax\.json"):
        dcjax.load(path)
    path.write_bytes(_zip_of({}))
    with pytest.raises(dcjax.FileError):
        dcjax.load(path)


def _zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def header(value, data=b""):
    value = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(value).to_bytes(8, "little") + value + data


def tensor(start, end, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "a header of exabytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (2**20).to_bytes(8, "little") + b"{}",
    "overlapping": header({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)),
    "a hole": header({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)),
    "more data": header({"a": tensor(0, 8)}, bytes(9)),
    "less data": header({"a": tensor(0, 8)}, bytes(7)),
    "another shape": header({"a": tensor(0, 8, shape=[3])}, bytes(8)),
    "an overflowing shape": header({"a": tensor(0, 8, shape=[2**62, 8])}, bytes(8)),
    "a negative shape": header({"a": tensor(0, 8, shape=[-2, -1])}, bytes(8)),
    "an unknown dtype": header({"a": tensor(0, 8, dtype="O")}, bytes(8)),
    "nested": header(b'{"a":' + b"[" * 10**5),
    "no JSON": header(b"\xff{}"),
    "metadata of another type": header({"__metadata__": {"dcjax.json": 1}}),
    "foreign": safetensors.numpy.save({"a": np.ones(2, np.float32)}),
    "empty": b"",
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_forged_safetensors(name, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(SAFETENSORS[name])
    with pytest.raises(dcjax.FileError, match=path.name):
        peak_of_loading(path)
