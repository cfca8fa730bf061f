"""Accuracy and cost against a plain loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcjax.method import score


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_score_is_the_plain_loops(examples, classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(examples, classes)).astype(np.float32)
    labels = rng.integers(classes, size=examples)
    rows = list(zip(logits.astype(float).tolist(), labels.tolist(), strict=True))
    costs = [math.log(sum(map(math.exp, row))) - row[label] for row, label in rows]
    right = [max(row) == row[label] for row, label in rows]
    found = score(logits, labels)
    assert found.accuracy == sum(right) / examples
    assert found.cost == pytest.approx(sum(costs) / examples, rel=1e-12)


def test_large_logits_do_not_overflow():
    found = score(np.array([[3e38, 0.0]], np.float32), np.array([1]))
    assert found.accuracy == 0
    assert found.cost == pytest.approx(3e38)


def test_a_cost_that_is_no_number_is_not_hidden():
    assert math.isnan(score(np.array([[math.nan, 0.0]], np.float32), np.array([1])).cost)
