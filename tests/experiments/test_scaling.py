"""The model of whole trainings, and what docs/scaling.md says of the records."""

import math
import shutil
from pathlib import Path

import pytest

from experiments.scaling import model, report, worker
from experiments.scaling.model import Cost

DOCS = Path(__file__).parents[2] / "docs"
STEP = {
    worker.SUBNET: Cost(1.0, 0),
    worker.GATHER: Cost(0.0, 1e6),
    worker.TOGETHER: Cost(3.0, 1e6),
    worker.APART: Cost(2.0, 0),
    worker.AVERAGE: Cost(0.5, 1e6),
}


def test_a_training_costs_its_steps_and_what_they_send():
    steps = model.STEPS
    assert model.global_network(STEP, 2) == pytest.approx((2 * steps * 3, 2 * steps * 1.5e6))
    every = model.global_network(STEP, 2, 100)  # an average on the way, and one at the end
    assert every == pytest.approx((2 * steps * 2 + 2 * 0.5, 2 * 1.5e6))
    assert model.transfer(STEP, (3, 0)) == pytest.approx((3 * steps, 1.5e6))
    assert model.transfer(STEP, (3, 1), 10**9)[0] == pytest.approx(3 * steps + 2 * steps + 0.5)


def test_a_curve_that_never_comes_there_takes_for_ever():
    curve = [{"epoch": 0, "accuracy": 0.5}, {"epoch": 1, "accuracy": 0.6}]
    assert model.epochs_to(curve, 0.7) == math.inf
    assert model.epochs_to(curve, 0.5) == 0


def test_the_page_says_what_the_records_give(tmp_path):
    shutil.copytree(DOCS / "study", tmp_path / "study")
    shutil.copy(DOCS / "scaling.md", tmp_path)
    report.write(tmp_path / "study" / "scaling.json", tmp_path / "scaling.md")
    assert (tmp_path / "scaling.md").read_text() == (DOCS / "scaling.md").read_text()
    assert (tmp_path / "scaling.svg").read_text().startswith("<?xml")
