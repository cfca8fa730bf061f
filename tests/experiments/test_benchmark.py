"""The benchmark's bookkeeping: what is measured once, kept, and written into the document."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dcjax import training
from experiments.benchmark import record, tables
from experiments.benchmark.timing import in_turns
from experiments.run import provenance as environment

ROOT = Path(__file__).parents[2]
SECONDS = {"median": 0.2, "fastest": 0.1, "slowest": 0.3}


STEP = dict.fromkeys(("side_by_side", "single", "global"), SECONDS) | {"subnets": 4}
ROWS = {"ResNet-8, width 8, K = 4": STEP}


def publish(document, place="steps"):
    measured = record.Measured(record.conditions(runs=3), ROWS)
    table = tables.load("steps").render(measured.rows)
    record.publish(document, place, "the command", measured, table)


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
    measured = record.begin(path, "steps", runs=3)
    assert measured.rows == {}
    measured.rows["one"] = {"value": 1}
    record.keep(path, "steps", measured)
    record.keep(path, "copies", record.begin(path, "copies", runs=3))
    assert record.begin(path, "steps", runs=3) == measured
    assert record.begin(path, "steps", runs=5).rows == {}
    other = json.loads(path.read_text())
    other["steps"]["conditions"]["versions"]["jax"] = "0"
    path.write_text(json.dumps(other))
    assert record.begin(path, "steps", runs=3).rows == {}


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
        "before\n<!-- steps -->\nold\n<!-- end -->\nafter\n<!-- copies -->\n<!-- end -->\n"
    )
    publish(document)
    text = document.read_text()
    publish(document)
    assert document.read_text() == text  # a second time changes nothing
    assert text.startswith("before\n<!-- steps -->\n    the command\n\ncpu: ")
    assert "old" not in text
    assert "after\n<!-- copies -->\n<!-- end -->" in text
    # 200 ms side by side, against 4 × 200 alone and 200 / 4 of the global network's
    assert (
        "| 200 (100–300) | 200 (100–300) | 200 (100–300) | – | – | – | 0.25 | – | 4.00 | – |"
        in text
    )


def test_an_accelerator_s_table_is_appended_beside_the_cpu_s(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text("<!-- steps -->\nold\n<!-- end -->\n")
    publish(document, "steps on gpu")
    publish(document, "steps on gpu")
    text = document.read_text()
    assert text.startswith("<!-- steps -->\nold\n<!-- end -->\n\n## Steps on gpu\n")
    assert text.count("<!-- steps on gpu -->") == text.count("the command") == 1


def test_the_repository_s_document_has_every_place():
    text = (ROOT / "BENCHMARKS.md").read_text()
    assert all(f"<!-- {name} -->\n" in text for name in tables.NAMES)


def test_wrong_flags_are_answered_before_anything_is_measured():
    command = [sys.executable, "-m", "experiments.benchmark", "--only", "nothing", "--runs", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 2
    assert "nothing" in ran.stderr
