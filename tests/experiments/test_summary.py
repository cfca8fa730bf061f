"""The closing table says what the results say, in 80 columns."""

import io

import pytest
from rich.console import Console

from experiments.results import summary


def shown(results, width=80, **asked):
    console = Console(file=io.StringIO(), width=width)
    summary.show(results, console, **asked)
    return console.file.getvalue()


def test_every_phase_has_its_figures(results):
    lines = shown(results).splitlines()

    def row(start):
        (line,) = [line for line in lines if f" {start} " in line]
        return [cell.strip() for cell in line.split("│")[1:-1]]

    assert row("sub-network 0") == ["sub-network 0", "4", "41.00 %", "1.5100", "5.0", "20.0"]
    assert row("sub-network 1") == ["sub-network 1", "", "42.00 %", "1.5200", "", ""]
    assert row("composed") == ["composed", "", "50.00 %", "1.2500", "0.25", "0.25"]
    assert row("fine-tuned") == ["fine-tuned", "2", "70.00 %", "0.3000", "20.0", "80.0"]
    assert row("baseline") == ["baseline", "3", "60.00 %", "0.4000", "30.5", "122.0"]


def test_it_fits_80_columns_without_a_terminal(results):
    assert max(map(len, shown(results).splitlines())) <= 80


def test_bounds_and_error_are_shown(results):
    text = shown(results)
    assert "12.50 % ≤ 50.00 % ≤ 75.00 %" in text
    assert "0.5000 ≤ 1.2500 ≤ 1.5000" in text
    assert "3.0e-07" in text


def test_what_diverged_is_said(results):
    results["subnets_phase"]["diverged"] = [{"subnet": 1, "step": 77, "then": "drop"}]
    assert "sub-network 1 diverged at step 77: dropped" in shown(results)


def test_the_last_line_is_the_verdict(results):
    assert summary.verdict(results) == (
        "Reached the baseline's 60.00 % (± 0.49 %, standard error of 10000 test images) in 15.2 s, "
        "against 30.5 s from scratch: 2.00× in wall-clock time, 1.50× in device time."
    )
    assert " ".join(shown(results).split()).endswith(summary.verdict(results))


def test_a_target_that_was_not_reached_is_said(results):
    results["speedup"] |= {"wall": None, "device": None, "target_accuracy": 0.75}
    assert summary.verdict(results).startswith("Not reached: the baseline's 75.00 %")
    assert "70.00 % in 25.2 s" in summary.verdict(results)


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
    assert "baseline" not in {row[0] for row in summary.rows(results)}


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
    assert "feature error: all zero, or NaN" in shown(results)
    assert summary.verdict(results).startswith("The baseline's training diverged")
