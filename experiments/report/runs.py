"""A run as its report sees it: what its folder holds, and its curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.report import evidence
from experiments.report.evidence import Evidence
from experiments.results.schema import Results
from experiments.run import workdir


class Run(NamedTuple):
    """A finished run.

    Attributes:
      settings: plain values by the names of their flags.
      metrics: the lines of `metrics.jsonl`, of which damaged ones are left out.
      evidence: None if the run left none.
    """

    folder: Path
    settings: dict[str, Any]
    results: Results
    metrics: list[dict[str, Any]]
    evidence: Evidence | None


class Curve(NamedTuple):
    """A stage over the whole run; values that were not measured, or were not finite, are NaN.

    Attributes:
      name: for people.
      seconds: of training until each entry; `operations` likewise, NaN if unknown.
      accuracy: on the test split, of each of the networks that the stage trains.
      loss: on the test split.
      training_loss: the mean over the steps since the entry before.
    """

    name: str
    seconds: Float[np.ndarray, " n"]
    operations: Float[np.ndarray, " n"]
    accuracy: Float[np.ndarray, "n m"]
    loss: Float[np.ndarray, "n m"]
    training_loss: Float[np.ndarray, "n m"]


def load(folder: Path) -> Run:
    """Read a finished run.

    Raises:
      WorkdirError: the folder holds no finished run.
      ValueError: the evidence is damaged.
    """
    settings, results = (
        workdir.read(folder / name) for name in (workdir.SETTINGS, workdir.RESULTS)
    )
    if settings is None or results is None:
        missing = workdir.RESULTS if results is None else workdir.SETTINGS
        raise workdir.WorkdirError(
            f"{folder} holds no finished run: {missing} is missing. The command that began the run "
            "continues it"
        )
    lines = workdir.metrics(folder / workdir.METRICS)
    return Run(folder, settings, results, lines, evidence.read(folder))  # type: ignore


def curves(run: Run) -> tuple[Curve, Curve, Curve]:
    """Return the sub-networks, the global network from composition on, and the baseline.

    The second begins where the first ends, with the composed network.
    """
    results = run.results
    subnets, composed = results["subnets_phase"], results["composed"]
    each = results.get("operations_per_epoch", {"subnets": np.nan, "global": np.nan})
    lines = [line for line in run.metrics if line.get("phase") == "subnets" and line.get("loss")]
    lines = [line for line in lines if isinstance(line.get("epoch"), int)]
    last = {**subnets, "epoch": subnets["epochs"]}
    if lines and lines[-1]["epoch"] == subnets["epochs"]:
        last = lines.pop() | last
    entries = [*lines, last]
    before = subnets["seconds"] + composed["seconds"]
    spent = subnets["epochs"] * each["subnets"]
    return (
        _curve("sub-networks", entries, each["subnets"]),
        _curve(
            "composed, then fine-tuned", _joined(run, "finetune"), each["global"], before, spent
        ),
        _curve("baseline, from scratch", _joined(run, "baseline"), each["global"]),
    )


def _joined(run: Run, stage: str) -> list[dict[str, Any]]:
    """Return the evaluations of a stage, with the training losses that the metrics have."""
    losses = {
        line.get("epoch"): line.get("loss") for line in run.metrics if line.get("phase") == stage
    }
    phase: Any = run.results[stage]  # type: ignore[literal-required]
    return [entry | {"loss": losses.get(entry["epoch"])} for entry in phase["curve"]]


def _curve(
    name: str,
    entries: Sequence[dict[str, Any]],
    epoch_operations: float,
    seconds: float = 0.0,
    operations: float = 0.0,
) -> Curve:
    def column(key: str) -> np.ndarray:
        rows = [np.atleast_1d(np.array(entry.get(key), float)) for entry in entries]
        most = max(map(len, rows))
        return np.array([row if len(row) == most else np.full(most, np.nan) for row in rows])

    return Curve(
        name,
        seconds + column("seconds")[:, 0],
        operations + epoch_operations * column("epoch")[:, 0],
        column("accuracy"),
        column("cost"),
        column("loss"),
    )
