"""A run's results, as they are written."""

import pytest


def curve(*accuracies):
    return [
        {
            "epoch": epoch,
            "seconds": 10.0 * epoch,
            "device_seconds": 40.0 * epoch,
            "accuracy": accuracy,
            "cost": 1 - accuracy,
        }
        for epoch, accuracy in enumerate(accuracies)
    ]


@pytest.fixture
def results():
    """Two sub-networks; the baseline's accuracy is reached after one epoch of two."""
    return {
        "dataset": "cifar10",
        "subnets": 2,
        "seed": 3,
        "model": {"classes": 10},
        "versions": {},
        "devices": {},
        "compile_seconds": {},
        "subnets_phase": {
            "epochs": 4,
            "seconds": 5.0,
            "device_seconds": 20.0,
            "accuracy": [0.41, 0.42],
            "cost": [1.51, 1.52],
        },
        "composed": {
            "seconds": 0.25,
            "accuracy": 0.5,
            "cost": 1.25,
            "accuracy_lower": 0.125,
            "accuracy_upper": 0.75,
            "cost_lower": 0.5,
            "cost_upper": 1.5,
            "feature_error": 3e-7,
        },
        "finetune": {
            "epochs": 2,
            "seconds": 20.0,
            "device_seconds": 80.0,
            "accuracy": 0.7,
            "cost": 0.3,
            "curve": curve(0.5, 0.6, 0.7),
        },
        "baseline": {
            "epochs": 3,
            "seconds": 30.5,
            "device_seconds": 122.0,
            "accuracy": 0.6,
            "cost": 0.4,
            "curve": curve(0.1, 0.4, 0.5, 0.6),
        },
        "speedup": {
            "target_accuracy": 0.6,
            "test_images": 10_000,
            "seconds": 15.25,
            "baseline_seconds": 30.5,
            "wall": 2.0,
            "device": 1.5,
        },
    }
