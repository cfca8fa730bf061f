"""The speedup's arithmetic."""

import math

import pytest

from experiments.speedup import speedup

SUBNETS = {"seconds": 10.0, "device_seconds": 40.0}
COMPOSED = {"seconds": 1.0}
BASELINE = {"epochs": 5, "accuracy": 0.8, "cost": 0.6, "seconds": 100.0, "device_seconds": 400.0}


def curve(*accuracies):
    return [
        {"seconds": 9.0 * e, "device_seconds": 36.0 * e, "accuracy": accuracy, "cost": 0.5}
        for e, accuracy in enumerate(accuracies)
    ]


def test_fine_tuning_counts_until_the_target_is_first_reached():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.5, 0.8, 0.7, 0.9)}, BASELINE)
    assert found == {
        "target_accuracy": 0.8,
        "wall": pytest.approx(100 / (10 + 1 + 9)),
        "device": pytest.approx(400 / (40 + 1 + 36)),
    }


def test_a_composed_network_that_is_good_enough_needs_no_fine_tuning():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.8, 0.9)}, BASELINE)
    assert found["wall"] == pytest.approx(100 / 11)
    assert found["device"] == pytest.approx(400 / 41)


def test_a_target_that_was_not_reached_gives_no_speedup():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.5, 0.79)}, BASELINE)
    assert found == {"target_accuracy": 0.8, "wall": None, "device": None}


def test_what_diverged_reaches_nothing_and_is_no_target():
    diverged = [curve(0.9)[0] | {"cost": math.nan}]
    assert speedup(SUBNETS, COMPOSED, {"curve": diverged}, BASELINE)["wall"] is None
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.9)}, BASELINE | {"cost": math.inf})
    assert found == {"target_accuracy": 0.8, "wall": None, "device": None}


def test_without_a_baseline_there_is_no_speedup():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.9)}, BASELINE | {"epochs": 0})
    assert (found["wall"], found["device"]) == (None, None)
