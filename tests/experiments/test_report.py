"""A run's report: what it says, that it is one sound page, and that it never costs a result."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import dcjax
from experiments.report import __main__ as command
from experiments.report import content, evidence, figures, runs, write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
VOID = {"meta", "link", "br", "img"}


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    counts = np.array([[5, 1], [0, 6]])
    sizes = np.stack([np.eye(2), np.eye(2) + 0.1, np.full((2, 2), 0.1)])
    return evidence.Evidence(
        classes=("<cat>", "a|b"),
        images=rng.integers(0, 256, (3, 4, 4, 3), np.uint8),
        labels=np.array([0, 1, 1]),
        views=rng.normal(size=(2, 3, 4, 4, 1)),
        said=np.array([[0, 1, 0], [1, 1, 1]]),
        confusion={"fine-tuned": counts, "baseline": counts},
        blocks={"params/conv1/kernel": sizes, "params/conv2/kernel": sizes},
    )


@pytest.fixture
def folder(tmp_path, results, found):
    """The folder of a finished run."""
    results["model"] |= {"name": "resnet", "depth": 8, "width": 32}
    results["operations_per_epoch"] = {"subnets": 1e9, "global": 4e9}
    place = tmp_path / "run & one"
    place.mkdir()
    (place / "results.json").write_text(json.dumps(results))
    (place / "settings.json").write_text(json.dumps({"seed": 3, "subnets": 2}))
    lines = [
        {"phase": "subnets", "epoch": n, "seconds": n * 1.25, "loss": [2.0 / n, 1.5 / n]}
        for n in (1, 2, 3, 4)
    ]
    lines += [{"phase": "baseline", "epoch": 1, "loss": 0.9}]
    text = "\n".join(map(json.dumps, lines))
    (place / "metrics.jsonl").write_text(text + "\n{damaged")
    evidence.write(place, found)
    return place


def test_evidence_is_read_as_it_was_written(folder, found):
    read = evidence.read(folder)
    assert read.classes == found.classes
    for name in ("images", "labels", "views", "said"):
        np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
    for name in ("confusion", "blocks"):
        assert getattr(read, name).keys() == getattr(found, name).keys()
        for key, array in getattr(found, name).items():
            np.testing.assert_array_equal(getattr(read, name)[key], array)


def test_blocks_of_interleaved_channels_are_told_apart():
    """After a flatten the sub-networks' rows interleave: block (i, j) has rows i, i + K, …"""
    run = dcjax.Run(1)
    axes = dcjax.Order((run,), repeat=2), dcjax.Order((run,))
    layout = dcjax.Layout(2, ((("w",), dcjax.LeafLayout(axes)),))
    after = np.array([[3.0, 0.5], [0.25, 4.0], [3.0, 0.5], [0.25, 4.0]])
    sizes = evidence.block_sizes(layout, {"w": 0 * after}, {"w": after})["w"]
    np.testing.assert_allclose(sizes[1], [[3.0, 0.5], [0.25, 4.0]])
    np.testing.assert_array_equal(sizes[0], 0)


def test_shared_rows_belong_to_no_block():
    mixed = dcjax.Order((dcjax.Run(1, shared=True), dcjax.Run(1)))
    axes = mixed, dcjax.Order((dcjax.Run(1),))
    layout = dcjax.Layout(2, ((("w",), dcjax.LeafLayout(axes)),))
    after = np.array([[100.0, 100.0], [1.0, 0.0], [0.0, 1.0]])
    sizes = evidence.block_sizes(layout, {"w": after}, {"w": after})["w"]
    np.testing.assert_array_equal(sizes[1], np.eye(2))


def test_the_global_network_begins_where_the_sub_networks_end(folder):
    subnets, whole, baseline = runs.curves(runs.load(folder))
    np.testing.assert_allclose(subnets.seconds, [1.25, 2.5, 3.75, 5.0])
    np.testing.assert_allclose(subnets.operations, [1e9, 2e9, 3e9, 4e9])
    np.testing.assert_allclose(subnets.accuracy[-1], [0.41, 0.42])
    assert np.isnan(subnets.accuracy[:-1]).all()
    np.testing.assert_allclose(whole.seconds, [5.25, 15.25, 25.25])
    np.testing.assert_allclose(whole.operations, [4e9, 8e9, 12e9])
    np.testing.assert_allclose(baseline.operations, [0, 4e9, 8e9, 12e9])
    np.testing.assert_allclose(baseline.training_loss[:2, 0], [np.nan, 0.9])


class Page(html.parser.HTMLParser):
    """Collects elements that are not closed in order, and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.addresses, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [v for k, v in attrs if k in ("href", "src", "xlink:href", "action")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_well_formed_and_has_no_outside_resource(folder):
    write.of_run(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.wrong == []
    assert page.open == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    # An XML namespace has a name like an address, which nobody opens.
    assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"@import|<script|url\((?!#|data:)", text)
    assert "prefers-color-scheme: dark" in text
    assert "&lt;cat&gt;" in text
    assert "<cat>" not in text


def test_every_colour_of_a_picture_is_a_variable_of_the_style(folder):
    write.of_run(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    defined = re.findall(r"^ *(--[\w-]+):", text, re.MULTILINE)
    assert used <= set(defined)
    assert all(defined.count(name) == 2 for name in used)  # light and dark
    assert "--dcjax" in used


def test_what_the_report_says(folder):
    write.of_run(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# cifar10: 2 sub-networks of width 16 in a ResNet-8 of width 32\n")
    assert "| fine-tuned | 2 | 70.00 % | 0.3000 | 20.0 s | 8 |" in text
    assert "| accuracy | 12.50 % | 50.00 % | 75.00 % |" in text
    assert "| conv1 | 9.09 % | 10.00 % |" in text  # 0.1 / 1.1, and 0.1 / 1
    assert "| fine-tuned | <cat> | a\\|b | 1 of 6 |" in text
    assert "✗ a\\|b" in text


def test_a_run_without_evidence_or_operations_has_a_report(folder, results):
    (folder / "report.npz").unlink()
    del results["operations_per_epoch"]
    (folder / "results.json").write_text(json.dumps(results))
    write.of_run(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "left no pictures" in text
    assert "FLOP" not in text
    assert "over operations" not in text


def test_a_diverged_run_without_a_baseline_has_a_report(folder, results):
    results["subnets_phase"]["cost"] = [None, None]
    results["composed"] |= {"cost": None, "cost_lower": None, "cost_upper": None}
    results["composed"]["feature_error"] = None
    for stage in ("finetune", "baseline"):
        results[stage]["cost"] = None
        for entry in results[stage]["curve"]:
            entry["cost"] = None
    results["baseline"] |= {"epochs": 0, "curve": results["baseline"]["curve"][:1]}
    results["speedup"] |= {"wall": None, "device": None}
    (folder / "results.json").write_text(json.dumps(results))
    write.of_run(folder)
    assert "No baseline was trained" in (folder / "report.md").read_text(encoding="utf-8")


def test_many_classes_and_many_sub_networks_have_pictures(found):
    classes = tuple(f"class {n}" for n in range(101))
    counts = np.eye(101, dtype=int)
    many = found._replace(classes=classes, confusion={"fine-tuned": counts})
    views = np.repeat(found.views[:1], 16, axis=0)
    many = many._replace(views=views, said=np.repeat(found.said[:1], 16, axis=0))
    sizes = np.stack([np.eye(16), np.eye(16) + 0.01, np.full((16, 16), 0.01)])
    many = many._replace(blocks={f"params/c{n}/kernel": sizes for n in range(31)})
    assert len(content._confusion(many).pictures) == 1
    assert len(content._samples(many).tables[0].rows) == 1 + content.SHOWN_SUBNETS
    assert len(content._blocks(many).pictures) == 2


def test_several_runs_side_by_side(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "settings.json").write_text(json.dumps({"seed": 4, "subnets": 2}))
    output = tmp_path / "both.html"
    assert command.main(command.PROGRAM, [str(folder), str(other), "--output", str(output)]) == 0
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "| run & one | cifar10 | 2 | 32 |" in text
    assert "| seed | 3 | 4 |" in text
    assert f"Pictures, in {output.name}: " in text
    assert "| subnets |" not in text  # what is equal is left out
    assert (other / "report.html").is_file()
    assert str(output) in capsys.readouterr().out


def test_runs_of_different_size_share_the_unit_of_the_axis(folder):
    small = runs.curves(runs.load(folder))
    large = tuple(curve._replace(operations=1000 * curve.operations) for curve in small)
    figure = figures.compared([("small", small), ("large", large)], operations=True)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "operations of training, TFLOP"
    ends = [line.get_xdata()[-1] for line in axes.lines]
    np.testing.assert_allclose(ends, [0.012, 0.012, 12, 12])
    figures.pyplot.close(figure)


@pytest.mark.parametrize("part", ["subnets_phase", "finetune", "model", "speedup"])
@pytest.mark.parametrize("change", [{}, [], {"accuracy": [], "epochs": 0}])
def test_a_damaged_run_hides_no_other(part, change, folder, results, capsys):
    bad = folder.with_name("bad")
    shutil.copytree(folder, bad)
    (bad / "results.json").write_text(json.dumps(results | {part: change}))
    assert command.main(command.PROGRAM, [str(bad), str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{folder / 'report.html'}\n"
    assert err.startswith(f"{command.PROGRAM}: error: {bad}: its results.json, metrics or")
    assert err.count("\n") == 1


def test_lines_of_metrics_without_their_keys_are_left_out(folder):
    good = runs.curves(runs.load(folder))
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'\nx}\n\xff\xfe\n3\n{"phase": "subnets", "loss": [1.0, 1.0]}\n{}\n')
    for one, other in zip(good, runs.curves(runs.load(folder)), strict=True):
        np.testing.assert_array_equal(one.training_loss, other.training_loss)


def test_a_folder_without_a_finished_run_is_one_message(tmp_path, capsys):
    assert command.main(command.PROGRAM, [str(tmp_path)]) == 2
    assert "holds no finished run: results.json is missing" in capsys.readouterr().err


def test_without_matplotlib_the_run_says_how_to_get_the_report(folder, monkeypatch):
    def missing(folder):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(write, "of_run", missing)
    said = []
    write.after_run(folder, said.append)
    (line,) = said
    assert "no report without matplotlib: pip install -e '.[experiments]'" in line
    assert f"python -m experiments.report {folder}" in line


def test_a_report_that_fails_is_said_and_raises_nothing(folder):
    (folder / "report.npz").write_bytes(b"damaged")
    said = []
    write.after_run(folder, said.append)
    assert said[0].startswith("the report failed, the results are kept: ValueError")


def test_evidence_that_cannot_be_gathered_is_said_and_raises_nothing(tmp_path):
    said = []

    def gather():
        raise MemoryError("no memory")

    write.keep(tmp_path, gather, said.append)
    assert said == ["the report will lack kernels, samples and answers: MemoryError: no memory"]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the path")
def test_chromium_opens_it_without_an_error(folder, tmp_path):
    write.of_run(folder)
    # The script waits for the page and reports what a person would see.
    probe = """<script>addEventListener("load", () => {
      const wide = document.documentElement.scrollWidth > innerWidth;
      const broken = [...document.images].some(image => !image.naturalWidth);
      const flat = [...document.querySelectorAll("svg")].some(
        svg => svg.getBoundingClientRect().height < 50);
      console.log(`seen: wide ${wide}, broken ${broken}, flat ${flat}`);
    })</script></body>"""
    page = tmp_path / "page.html"
    text = (folder / "report.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", probe), encoding="utf-8")
    assert BROWSER is not None
    ran = subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--window-size=600,900",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stderr.splitlines() if ":CONSOLE" in line]
    assert len(lines) == 1, lines
    assert "seen: wide false, broken false, flat false" in lines[0]
