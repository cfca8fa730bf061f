"""The closing table says what the results say, in 80 columns."""

import io

import pytest
from rich.console import Console

from experiments.results import summary


def shown(results, width=80, **asked):
    console = Console(file=io.StringIO(), width=width)
    summary.show(results, console, **asked)
    return console.file.getvalue()


def row(text, start):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.replace(start, "", 1).split()


def test_every_stage_has_its_figures(results):
    text = shown(results)
    assert row(text, "sub-networks ") == ["4", "41.50", "%", "1.5150", "5.0", "s", "20.0", "s"]
    assert row(text, "sub-network 0") == ["41.00", "%", "1.5100"]
    assert row(text, "sub-network 1") == ["42.00", "%", "1.5200"]
    assert row(text, "composed ") == ["50.00", "%", "1.2500", "0.25", "s", "0.25", "s"]
    assert row(text, "fine-tuned") == ["2", "70.00", "%", "0.3000", "20.0", "s", "1m", "20s"]
    assert row(text, "dcjax in all") == ["25.2", "s", "1m", "40s"]
    assert row(text, "baseline") == ["3", "60.00", "%", "0.4000", "30.5", "s", "2m", "02s"]


def test_operations_have_a_column_where_they_are_known(results):
    results["operations_per_epoch"] = {"subnets": 1e12, "global": 4e12}
    text = shown(results)
    assert "TFLOP" in text
    cells = {line[0].strip(): line[5] for line in summary.table(summary.rows(results))[1]}
    assert cells["sub-networks"] == "4"
    assert cells["fine-tuned"] == "8"
    assert cells["dcjax in all"] == cells["baseline"] == "12"
    assert "for 12 TFLOP against 12 TFLOP" in text.replace("\n", " ")


def test_device_seconds_have_a_column_only_where_they_differ(results):
    assert "device time" in shown(results)
    for stage in ("subnets_phase", "finetune", "baseline"):
        results[stage]["device_seconds"] = results[stage]["seconds"]
    assert "device" not in summary.table(summary.rows(results))[0]


def test_of_many_sub_networks_the_worst_and_the_best_are_shown(results):
    results["subnets_phase"] |= {"accuracy": [0.4, 0.2, 0.5, 0.3, 0.1], "cost": [1.0] * 5}
    text = shown(results | {"subnets": 5})
    assert row(text, "worst") == ["10.00", "%", "1.0000"]
    assert row(text, "best") == ["50.00", "%", "1.0000"]
    assert "sub-network 0" not in text


def test_it_fits_60_columns(results):
    for stage in ("subnets_phase", "finetune", "baseline"):
        results[stage]["device_seconds"] = results[stage]["seconds"]
    results["operations_per_epoch"] = {"subnets": 1e12, "global": 4e12}
    text = shown(results, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text
    assert row(text, "sub-networks ") == ["4", "41.50", "%", "1.5150", "5.0", "s", "4"]


def test_bounds_and_error_are_shown(results):
    text = shown(results)
    assert "12.50 % ≤ 50.00 % ≤ 75.00 %" in text
    assert "0.5000 ≤ 1.2500 ≤ 1.5000" in text
    assert "3.0e-07" in text


def test_what_diverged_is_said(results):
    results["subnets_phase"]["diverged"] = [{"subnet": 1, "step": 77, "then": "drop"}]
    assert "Sub-network 1 diverged at step 77: dropped" in shown(results)


def test_the_last_lines_are_the_verdict(results):
    assert summary.verdict(results) == (
        "Reached the baseline's 60.00 % in 15.2 s, against 30.5 s from scratch: "
        "2.00 times faster; in device time 1.50 times faster."
    )
    assert summary.comparison(results) == (
        "Final accuracy better than the baseline's: 70.00 % against 60.00 %, "
        "+10.00 ± 0.67 points (10000 test images)."
    )
    said = f"{summary.verdict(results)} {summary.comparison(results)}"
    assert " ".join(shown(results).split()).endswith(said)


def test_slower_is_said(results):
    results["speedup"] |= {"wall": 0.5, "device": 0.5}
    assert summary.verdict(results).endswith("from scratch: 2.00 times slower.")


@pytest.mark.parametrize(
    ("accuracy", "said"), [(0.605, "equal to the baseline's within the error"), (0.5, "worse than")]
)
def test_the_final_accuracy_is_judged(results, accuracy, said):
    results["finetune"]["accuracy"] = accuracy
    assert said in summary.comparison(results)


def test_a_target_that_was_not_reached_is_said(results):
    results["speedup"] |= {"wall": None, "device": None, "target_accuracy": 0.75}
    assert summary.verdict(results).startswith("Not reached: the baseline's 75.00 %")
    assert "dcjax came to 70.00 % in 25.2 s" in summary.verdict(results)


def test_a_baseline_that_only_guesses_is_said(results):
    results["speedup"] |= {"wall": None, "device": None, "target_accuracy": 0.1}
    assert summary.verdict(results).startswith(
        "10000 test images cannot tell the baseline's 10.00 % from guessing (10.00 %)"
    )


def test_a_baseline_that_blew_up_is_said(results):
    results["speedup"] |= {"wall": None, "device": None}
    results["baseline"]["cost"] = 6.0
    assert summary.verdict(results).startswith(
        "The baseline's loss, 6.0000, is worse than that of guessing (2.3026)"
    )


def test_no_baseline_is_said(results):
    results["baseline"]["epochs"] = 0
    assert summary.verdict(results).startswith("No baseline")
    assert "baseline" not in {row.stage for row in summary.rows(results)}


@pytest.mark.parametrize(("dataset", "said"), [("digits", True), ("cifar10", False)])
def test_a_stand_in_is_said(results, dataset, said):
    results["dataset"] = dataset
    assert ("NOT CIFAR-10" in shown(results)) is said


def test_digits_that_were_asked_for_are_no_stand_in(results):
    assert "NOT CIFAR-10" not in shown(results | {"dataset": "digits"}, asked="digits")


def test_a_diverged_run_is_shown(results):
    results["composed"] |= {"cost": None, "cost_lower": None, "feature_error": None}
    results["subnets_phase"]["cost"] = [None, None]
    results["baseline"]["cost"] = None
    assert "diverged ≤ diverged ≤ 1.5000" in shown(results)
    assert "all feature maps are zero, or NaN" in shown(results)
    assert summary.verdict(results).startswith("The baseline's training diverged")
