"""The speedup's arithmetic."""

import functools
import math

import pytest

from experiments.results import speedup as module

speedup = functools.partial(module.speedup, classes=10, test_images=10_000)

SUBNETS = {"seconds": 10.0, "device_seconds": 40.0}
COMPOSED = {"seconds": 1.0}
NONE = {"seconds": None, "baseline_seconds": None, "wall": None, "device": None}


def curve(*accuracies, seconds=9.0):
    return [
        {"seconds": seconds * e, "device_seconds": 4 * seconds * e, "accuracy": a, "cost": 0.5}
        for e, a in enumerate(accuracies)
    ]


BASELINE = {"epochs": 4, "accuracy": 0.8, "cost": 0.6} | {
    "curve": curve(0.1, 0.5, 0.6, 0.7, 0.8, seconds=25.0)
}


def test_fine_tuning_counts_until_the_target_is_first_reached():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.5, 0.8, 0.7, 0.9)}, BASELINE)
    assert found == {
        "target_accuracy": 0.8,
        "test_images": 10_000,
        "seconds": pytest.approx(10 + 1 + 9),
        "baseline_seconds": 100.0,
        "wall": pytest.approx(100 / (10 + 1 + 9)),
        "device": pytest.approx(400 / (40 + 1 + 36)),
    }


def test_the_baseline_too_counts_until_it_first_reaches_its_end():
    sooner = BASELINE | {"curve": curve(0.1, 0.85, 0.6, 0.7, 0.8, seconds=25.0)}
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.5, 0.8)}, sooner)
    assert found["baseline_seconds"] == 25.0
    assert found["wall"] == pytest.approx(25 / 20)
    assert found["device"] == pytest.approx(100 / 77)


def test_a_composed_network_that_is_good_enough_needs_no_fine_tuning():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.8, 0.9)}, BASELINE)
    assert found["wall"] == pytest.approx(100 / 11)
    assert found["device"] == pytest.approx(400 / 41)


def test_a_target_that_was_not_reached_gives_no_speedup():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.5, 0.79)}, BASELINE)
    assert found == {"target_accuracy": 0.8, "test_images": 10_000} | NONE


def test_what_diverged_reaches_nothing_and_is_no_target():
    diverged = [curve(0.9)[0] | {"cost": math.nan}]
    assert speedup(SUBNETS, COMPOSED, {"curve": diverged}, BASELINE)["wall"] is None
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.9)}, BASELINE | {"cost": math.inf})
    assert found == {"target_accuracy": 0.8, "test_images": 10_000} | NONE


def test_a_baseline_that_only_guesses_is_no_target():
    guessing = BASELINE | {"accuracy": 0.1, "curve": curve(0.1, 0.1)}
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.1, 0.1)}, guessing)
    assert found == {"target_accuracy": 0.1, "test_images": 10_000} | NONE


def test_without_a_baseline_there_is_no_speedup():
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.9)}, BASELINE | {"epochs": 0})
    assert (found["wall"], found["device"]) == (None, None)


def test_a_baseline_worse_than_guessing_is_no_target():
    """Its loss is what shows that it blew up; some of its classes may still be right."""
    blown = BASELINE | {"accuracy": 0.4, "cost": 6.0, "curve": curve(0.1, 0.4)}
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.1, 0.5)}, blown)
    assert (found["wall"], found["device"]) == (None, None)


@pytest.mark.parametrize(("images", "told_apart"), [(20, False), (120, False), (10_000, True)])
def test_a_small_test_set_cannot_tell_an_accuracy_from_guessing(images, told_apart):
    near = BASELINE | {"accuracy": 0.15, "curve": curve(0.1, 0.15)}
    found = speedup(SUBNETS, COMPOSED, {"curve": curve(0.1, 0.2)}, near, test_images=images)
    assert (found["wall"] is not None) == told_apart
