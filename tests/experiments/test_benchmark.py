"""The benchmark's bookkeeping: what is measured once, kept, and written into the document."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dcjax
from dcjax import training
from experiments.benchmark import document as documents
from experiments.benchmark import store, tables
from experiments.benchmark.tables import norms, profile
from experiments.benchmark.timing import in_turns
from experiments.run import provenance as environment

ROOT = Path(__file__).parents[2]
SECONDS = {"median": 0.2, "fastest": 0.1, "slowest": 0.3}


def rows():
    on = store.conditions()
    step = dict.fromkeys(("side_by_side", "single", "global"), SECONDS)
    return {
        "steps": {"ResNet-8, width 8, K = 4": step | {"on": on, "date": "2000-01-01", "runs": 3}}
    }


def test_ways_are_run_in_turns_and_warmed_up():
    calls = []
    found = in_turns({name: lambda n=name: calls.append(n) for name in "ab"}, runs=3)
    assert calls == list("ab" + "ab" * 3)
    assert found["a"].fastest <= found["a"].median <= found["a"].slowest


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ("model name\t: A CPU\nflags\t\t: fma avx avx2 avx512f\n", "A CPU with AVX-512"),
        ("model name\t: A CPU\nflags\t\t: fma avx avx2\n", "A CPU with AVX2"),
        ("model name\t: A CPU\n", "A CPU"),
        ("", "unknown"),
    ],
)
def test_a_processor_is_told_from_another_of_its_name(monkeypatch, tmp_path, info, said):
    file = tmp_path / "cpuinfo"
    file.write_text(info)
    monkeypatch.setattr(environment, "Path", lambda _: file)
    assert environment.processor() == said


def test_rows_are_kept_for_the_same_conditions_only(tmp_path):
    path = tmp_path / "deep" / "rows.json"
    kept = store.Store(path)
    kept.add("steps", "one", {"value": 1, "runs": 3})
    again = store.Store(path)
    assert again.has("steps", "one", 3)
    assert not again.has("steps", "one", 5)
    assert not again.has("steps", "two", 3)
    fresh = store.Store(path, fresh=True)
    assert not fresh.has("steps", "one", 3)
    fresh.add("steps", "two", {"value": 2, "runs": 3})
    assert fresh.has("steps", "two", 3)
    assert store.Store(path).has("steps", "one", 3)
    other = json.loads(path.read_text())
    other["steps"]["one"]["on"]["versions"]["jax"] = "0"
    path.write_text(json.dumps(other))
    assert not store.Store(path).has("steps", "one", 3)


def test_the_commit_is_known_where_there_is_one(monkeypatch, tmp_path):
    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, check=True)

    code = tmp_path / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(code))
    monkeypatch.setattr(training, "__file__", str(tmp_path / "training" / "__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.commit() == ""
    code.write_text("one = 1\n")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    clean = environment.commit()
    assert git("rev-parse", "HEAD").stdout.decode().startswith(clean)
    assert len(clean) >= 4
    code.write_text("one = 2\n")
    assert environment.commit() == clean + "+"


def test_tables_replace_what_stands_between_their_markers(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text(
        "before\n<!-- steps -->\nold\n<!-- end -->\nafter\n<!-- scaling -->\n<!-- end -->\n"
    )
    documents.rewrite(document, rows())
    documents.rewrite(document, rows())  # a second time changes nothing
    text = document.read_text()
    assert text.startswith("before\n<!-- steps -->\n")
    assert "old" not in text
    assert "after\n<!-- scaling -->\n<!-- end -->" in text
    assert "--only steps --runs 3" in text
    # 200 ms side by side, against 4 × 200 alone and 200 / 4 of the global network's
    assert (
        "| 200 (100–300) | 200 (100–300) | 200 (100–300) | – | – | – | 0.25 | – | 4.00 | – |"
        in text
    )


def test_rows_stand_in_order_and_the_command_is_theirs(tmp_path):
    (row,) = rows()["steps"].values()
    document = tmp_path / "doc.md"
    document.write_text("<!-- steps -->\n<!-- end -->\n")
    names = ["ResNet-8, width 16, K = 4", "ResNet-20, width 8, K = 1", "ResNet-8, width 8, K = 8"]
    documents.rewrite(document, {"steps": {name: row | {"full": True} for name in names}})
    text = document.read_text()
    assert "--only steps --full --runs 3" in text
    assert [text.index(names[i]) for i in (2, 0, 1)] == sorted(map(text.index, names))


def test_rows_of_other_runs_and_places_are_told(tmp_path):
    (row,) = rows()["steps"].values()
    document = tmp_path / "doc.md"
    document.write_text("<!-- steps -->\n<!-- end -->\n")
    both = {"ResNet-8, width 8, K = 1": row, "ResNet-8, width 8, K = 2": row | {"runs": 7}}
    both["ResNet-8, width 8, K = 2"]["commit"] = "abc+"
    documents.rewrite(document, {"steps": both}, " --results here.json")
    text = document.read_text()
    assert "--only steps --runs 7 --results here.json\n" in text
    assert "; 3 runs; 2000-01-01." in text
    assert "; commit abc+; 7 runs; 2000-01-01." in text


def test_an_accelerator_s_table_is_appended_beside_the_cpu_s(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text("<!-- steps -->\nold\n<!-- end -->\n")
    documents.rewrite(document, {"steps on gpu": rows()["steps"]})
    documents.rewrite(document, {"steps on gpu": rows()["steps"]})
    text = document.read_text()
    assert text.startswith("<!-- steps -->\nold\n<!-- end -->\n\n## Steps on a gpu\n")
    assert text.count("<!-- steps on gpu -->") == text.count("--only steps --runs 3") == 1


def test_the_engines_are_the_columns():
    (row,) = rows()["steps"].values()
    text = tables.load("engines").render({"net": row | {"full": False}})
    assert "| net | 200 (100–300) | 200 (100–300) | 200 (100–300) |" in text


def test_the_norms_are_measured_and_compared():
    row = norms.measure(4, 2, runs=1)
    assert all(timing["median"] > 0 for timing in row.values())
    text = tables.load("norms").render(
        {"net": {"flax": {"median": 0.002}, "dcjax": {"median": 0.001}}}
    )
    assert "| net | 2.00 | 1.00 | 0.50 |" in text


def test_the_profile_s_remainder(tmp_path):
    row = {"native": [0.06, 0.01, 0.02, 0.02], "torch": [0.08, 0.015, 0.01, 0.02]}
    row["torch_compiled"] = [0.04]
    text = tables.load("profile").render({"net": row})
    assert "| net, compiled ones | 60 | 10 | 20 | 20 | 10 | 0.75 |" in text
    assert "| net, PyTorch | 80 | 15 | 10 | 20 | 35 | 1.00 |" in text
    assert "| net, PyTorch, `torch.compile` | 40 | – | – | – | – | 0.50 |" in text
    assert "XLA" not in text


def test_the_profile_counts_every_convolution():
    found = profile.convolutions_of(dcjax.models.ResNet(8, 4, 10))
    assert found == {
        (32, 3, 4, 3, 1): 1,
        (32, 4, 4, 3, 1): 2,
        (32, 4, 8, 3, 2): 1,
        (16, 8, 8, 3, 1): 1,
        (32, 4, 8, 1, 2): 1,
        (16, 8, 16, 3, 2): 1,
        (8, 16, 16, 3, 1): 1,
        (16, 8, 16, 1, 2): 1,
    }


def test_a_document_without_the_place_is_an_error(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="<!-- steps -->"):
        documents.rewrite(document, rows())
    assert document.read_text() == "nothing"


def test_the_repository_s_document_has_every_place():
    text = (ROOT / "BENCHMARKS.md").read_text()
    assert all(f"<!-- {name} -->\n" in text for name in tables.NAMES)


def test_wrong_flags_are_answered_before_anything_is_measured():
    command = [sys.executable, "-m", "experiments.benchmark", "--only", "nothing", "--runs", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 2
    assert "nothing" in ran.stderr
