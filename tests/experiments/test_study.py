"""The study: its trials can be run and resumed, and its tables follow from their results."""

import functools
import json
import shutil
import sys
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.run import workdir
from experiments.settings import naming, validate
from experiments.study import __main__ as command
from experiments.study import arms, figure, outcomes, tables, trials
from experiments.study.outcomes import Kind
from experiments.study.studies import STUDIES

ROOT = Path(__file__).parents[2]
STUDY = arms.Study(
    "small",
    "a study",
    {"dataset": "digits", "train_size": 100, "batch_size": 10, "width": 8},
    (
        arms.scratch(2, 0.1),
        arms.scratch(2, 0.2, seeds=1),
        arms.averaged((2, 1), 0.1, name="one"),
        arms.averaged((2, 1), 0.1, name="slow", seeds=1, head_rate=0.1),
        arms.averaged((2, 1), 0.1, name="K2", subnets=2),
    ),
)
ONE, PAIR = STUDY.arms[2], STUDY.arms[4]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(command, "STUDIES", {"small": STUDY})


def declared(runs=Path("runs"), seeds=3):
    return list(trials.trials(STUDY, runs, Path("records"), seeds))


def settings_of(arm):
    return trials.Trial(STUDY, arm, 0, Path("runs"), Path("records")).settings


@pytest.mark.parametrize("name", STUDIES)
def test_every_declared_trial_can_be_run(name):
    found = list(trials.trials(STUDIES[name], Path("runs"), Path("records"), seeds=3))
    assert len({trial.folder for trial in found}) == len(found)
    settings = [naming.flat(trial.settings) for trial in found]
    assert len({json.dumps(each, default=str) for each in settings}) == len(found)
    for trial in found:
        assert validate.problems(trial.settings) == []
        assert bool(trial.settings.training.subnet_epochs) != trial.arm.is_scratch


RECORDS = {*(ROOT / "docs" / "study").glob("*.json")}


@pytest.mark.parametrize("records", sorted(RECORDS - {ROOT / "docs" / "study" / "scaling.json"}))
def test_records_belong_to_declared_trials(records, tmp_path):
    """Whoever changes a default states the old value in the arms, so that no record is lost."""
    study = STUDIES[records.stem]
    found = {
        trial.folder.name: trial.results
        for trial in trials.trials(study, tmp_path, records.parent, seeds=9)
    }
    for_pace = {"off-diagonal-4x-8+4-rate-0.2-seed0"} & trials.read(records).keys()
    assert {name for name, results in found.items() if results} == (
        trials.read(records).keys() - for_pace
    )


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="unknown settings: widht"):
        arms.with_flags({"widht": 3})


def test_quoted_arms_have_all_seeds_and_others_one(small):
    seeds = {}
    for trial in declared():
        seeds.setdefault(trial.arm.name, []).append(trial.seed)
    assert seeds["scratch-2-rate-0.1"] == [0, 1, 2]
    assert seeds["slow-2+1-rate-0.1"] == [0]
    assert list(seeds) == [arm.name for arm in STUDY.arms]  # every arm before a second seed of one


def results(settings):
    """As a run leaves them: two device-seconds an epoch of the sub-networks, four of the others."""
    training, seed = settings.training, settings.seed

    def phase(epochs, start, gain):
        curve = [{"epoch": e, "accuracy": start + gain * e} for e in range(epochs + 1)]
        return {"epochs": epochs, "device_seconds": 4.0 * epochs, "curve": curve}

    gain = 0.0 if settings.transfer.head_rate else 0.15
    return {
        "subnets": settings.subnets,
        "seed": seed,
        "model": {"classes": 10, "samples": settings.network.samples},
        "versions": {"jax": "0"},
        "devices": {"kind": "cpu", "processor": None},
        "subnets_phase": {
            "epochs": training.subnet_epochs,
            "device_seconds": 0.5 * settings.subnets * training.subnet_epochs,
            "accuracy": [0.5] * settings.subnets,
        },
        "finetune": phase(training.finetune_epochs, 0.6, gain),
        "baseline": phase(training.baseline_epochs, 0.1, 0.3),
    }


@pytest.fixture
def ran(small, monkeypatch):
    """Runs leave their results at once; the commands that were given."""
    commands = []

    def run(args, **_):
        folder = Path(args[args.index("--workdir") + 1])
        trial = next(t for t in declared(folder.parents[1]) if t.folder == folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = naming.flat(trial.settings)
        (folder / workdir.SETTINGS).write_text(json.dumps(values))
        workdir.finish(folder, results(trial.settings), values)
        commands.append(args)

    # Not subprocess.run itself: matplotlib calls it too.
    fake = SimpleNamespace(run=run, DEVNULL=None, CalledProcessError=CalledProcessError)
    monkeypatch.setattr(trials, "subprocess", fake)
    return commands


def main(monkeypatch, tmp_path, *args):
    document = tmp_path / "results.md"
    if not document.exists():
        document.write_text("before\n<!-- small -->\n<!-- end -->\nafter\n")
    options = ["--seeds", "2", "--runs", str(tmp_path / "runs"), "--output", str(document)]
    options += ["--records", str(tmp_path / "records"), *args]
    monkeypatch.setattr("sys.argv", ["study", "--only", "small", *options])
    return command.main(), document.read_text()


def report(monkeypatch, tmp_path):
    return main(monkeypatch, tmp_path, "--report")


def test_a_study_runs_and_is_reported(ran, monkeypatch, tmp_path, capsys):
    code, text = main(monkeypatch, tmp_path)
    assert code == 0
    assert len(ran) == 8
    assert text == "before\n<!-- small -->\n<!-- end -->\nafter\n"  # not before it is asked for
    code, text = report(monkeypatch, tmp_path)
    assert code == 0
    assert "small: 8 trials of 8" in capsys.readouterr().err
    assert text.startswith("before\n<!-- small -->\n    python -m experiments.study --only small")
    assert text.endswith("<!-- end -->\nafter\n")
    # 2 epochs of 2 and one of 4 device-seconds; four of them at once in the first phase.
    (row,) = [line for line in text.splitlines() if line.startswith("| one-2+1-rate-0.1 | 2 |")]
    assert row.split(" | ")[2:8] == ["50.0 ± 0.0", "60.0 ± 0.0", "0.0", "75.0 ± 0.0", "8", "2"]
    # From scratch 70 % take 8 device-seconds, and so do 75 % here.
    (row,) = [line for line in text.splitlines() if line.startswith("| one-2+1-rate-0.1 | 2 of 2")]
    assert row.split(" | ")[2:4] == ["1.00×", "1.00×"]
    assert "| slow-2+1-rate-0.1 | 0 of 1 | – | – | – | -10.0 |" in text
    assert (tmp_path / "results-small.svg").stat().st_size > 1000
    assert main(monkeypatch, tmp_path) == (0, text)
    assert report(monkeypatch, tmp_path) == (0, text)
    assert len(ran) == 8


def test_results_are_kept_as_each_trial_finishes(ran, monkeypatch, tmp_path):
    kept = []
    run = trials.run

    def counting(*args):
        kept.append(len(trials.read(tmp_path / "records" / "small.json")))
        run(*args)

    monkeypatch.setattr(trials, "run", counting)
    main(monkeypatch, tmp_path)
    assert kept == [*range(8)]


def test_the_studies_to_run_must_be_named(small, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study"])
    assert command.main() == 2
    assert "name the studies to run, --only small; or" in capsys.readouterr().err


def test_arms_can_be_chosen(ran, monkeypatch, tmp_path, capsys):
    main(monkeypatch, tmp_path, "--arms", "slow-2+1-rate-0.1")
    code, _ = main(monkeypatch, tmp_path, "--arms", "one-2+1-rate-0.1", "scratch-2-rate-0.1")
    assert code == 0
    ends = [Path(args[args.index("--workdir") + 1]).name for args in ran]
    assert ends == ["slow-2+1-rate-0.1-seed0"] + [
        f"{arm}-2{rest}-rate-0.1-seed{seed}"
        for seed in (0, 1)
        for arm, rest in (("one", "+1"), ("scratch", ""))
    ]
    _, text = report(monkeypatch, tmp_path)
    assert "| slow-2+1-rate-0.1 | 1 |" in text  # not chosen this time, but there
    code, _ = main(monkeypatch, tmp_path, "--arms", "one-2+1")
    assert code == 2
    assert "--arms one-2+1: choose from scratch-2-rate-0.1 " in capsys.readouterr().err


def test_unknown_studies_are_named(small, monkeypatch, tmp_path, capsys):
    assert main(monkeypatch, tmp_path, "--only", "smal")[0] == 2
    assert "--only smal: choose from small" in capsys.readouterr().err


def test_results_stay_where_the_runs_do_not(ran, monkeypatch, tmp_path):
    main(monkeypatch, tmp_path)
    _, text = report(monkeypatch, tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert main(monkeypatch, tmp_path)[0] == 0
    assert report(monkeypatch, tmp_path) == (0, text)
    assert len(ran) == 8
    # A record of other settings does not count as the trial's.
    records = tmp_path / "records" / "small.json"
    kept = json.loads(records.read_text())
    assert len(kept) == 8
    kept["one-2+1-rate-0.1-seed0"]["settings"]["learning_rate"] = 0.3
    records.write_text(json.dumps(kept))
    main(monkeypatch, tmp_path)
    assert [Path(args[args.index("--workdir") + 1]).name for args in ran[8:]] == [
        "one-2+1-rate-0.1-seed0"
    ]


def test_a_study_without_a_place_in_the_document_is_left_out(ran, monkeypatch, tmp_path):
    main(monkeypatch, tmp_path)
    (tmp_path / "results.md").write_text("no place")
    assert report(monkeypatch, tmp_path) == (0, "no place")
    assert not (tmp_path / "results-small.svg").exists()


@pytest.mark.parametrize(
    ("code", "then"), [(1, "run the same command to continue"), (2, "correct the input")]
)
def test_a_trial_that_fails_is_said(small, monkeypatch, tmp_path, capsys, code, then):
    fails = [sys.executable, "-c", f"raise SystemExit({code})"]
    monkeypatch.setattr(trials, "command", lambda *_: fails)
    assert main(monkeypatch, tmp_path)[0] == 1
    assert f"a trial ended with exit code {code}; {then}" in capsys.readouterr().err


def test_results_are_found_that_were_not_kept(ran, monkeypatch, tmp_path):
    main(monkeypatch, tmp_path)
    _, text = report(monkeypatch, tmp_path)
    shutil.rmtree(tmp_path / "records")  # as if stopped between a trial and its record
    main(monkeypatch, tmp_path)
    assert report(monkeypatch, tmp_path) == (0, text)


def outcome(arm, accuracies, seed=0):
    costs = np.outer(np.arange(1.0, len(accuracies) + 1), np.ones(3))
    trial = trials.Trial(STUDY, arm, seed, Path(arm.name), Path("r"))
    return outcomes.Outcome(trial, {"versions": {"jax": "0"}}, np.array(accuracies), costs)


def test_an_arm_is_held_against_scratch_with_its_own_samples():
    whole = outcome(arms.scratch(2, 0.1), [0.5, 0.9])
    bands = outcome(arms.scratch(2, 0.1, name="scratch-bands", samples="bands"), [0.5, 0.6])
    arm = outcome(arms.averaged((2, 1), 0.1, name="bands", samples="bands"), [0.7])
    tiles = outcome(arms.averaged((2, 1), 0.1, name="tiles", samples="tiles"), [0.7])
    text = tables._speedups([whole, bands, arm, tiles])
    against_whole, rest = text.split("\n\nAgainst `scratch-bands-2-rate-0.1`")
    against_bands, without = rest.split("\n\nNo arm from scratch")
    assert against_whole.startswith("Against `scratch-2-rate-0.1`")
    assert "| bands-2+1" not in against_whole
    assert "| bands-2+1-rate-0.1 | 1 of 1 | 2.00× | 2.00× | 2.00× | +10.0 |" in against_bands
    assert "tiles" not in without


def test_the_gain_is_that_of_the_best_arms_seed_by_seed():
    slow, fast = (arms.scratch(2, rate) for rate in (0.1, 0.2))
    narrow = arms.averaged((2, 1), 0.1)
    found = [outcome(slow, [0.5]), outcome(slow, [0.6], 1), outcome(narrow, [0.6])]
    found += [outcome(narrow, [0.8], 1), outcome(fast, [0.9])]  # one seed only: it tunes
    row = "| 8 | 2 | scratch-2-rate-0.1 | 55.0 ± 7.1 | averaged-2+1-rate-0.1 | 70.0 ± 14.1 |"
    # A study with one side only has no gain.
    compared = outcomes.lengths([found[:2], found])
    assert len(compared) == 1
    assert f"{row} 1.00 | +15.0 ± 7.1 | 1.00× | 2 of 2 |" in tables._length_table(compared)


def test_the_picture_of_the_lengths_is_the_same_file_for_the_same_figures(tmp_path):
    sides = arms.scratch(2, 0.1), arms.averaged((2, 1), 0.1)
    found = [outcome(arm, [0.5, 0.6], seed) for arm in sides for seed in (0, 1)]
    for name in "ab":
        figure.draw_lengths(tmp_path / f"{name}.svg", outcomes.lengths([found]))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "width 8, seeds: 2" in (tmp_path / "a.svg").read_text()


FOUR, PAIRED = (Kind(True, k, "replicate") for k in (4, 2))
WHOLE = Kind(False, 1, "replicate")


def epoch_costs(*recorded, devices=4):
    count = {FOUR: 10.0, PAIRED: 10.0, WHOLE: 100.0}
    costs = outcomes.epoch_costs(recorded, count.__getitem__, devices)
    return {kind: cost.tolist() for kind, cost in costs.items()}


def slower(each, phase, factor):
    """The same results, a phase of which took so many times as long."""
    each[phase]["device_seconds"] *= factor
    return each


def test_the_pace_is_that_of_the_phase_that_was_disturbed_least():
    settings = settings_of(ONE)
    slow = slower(slower(results(settings), "finetune", 100.0), "subnets_phase", 100.0)
    found = epoch_costs(slow, slow, results(settings))
    assert found == {FOUR: [2.0, 0.5, 40.0], WHOLE: [4.0, 1.0, 100.0]}


def on(processor, each):
    each["devices"]["processor"] = processor
    return each


def test_another_processor_gives_no_pace_but_for_what_the_first_has_not_run():
    settings = settings_of(ONE)
    own = slower(results(settings), "finetune", 10.0)
    other, alone = (on("another", results(settings)) for _ in range(2))
    alone["subnets"] = 2
    found = epoch_costs(*[on("most", own)] * 3, other, alone)
    assert found[WHOLE][0] == 40.0
    assert found[PAIRED][0] == 2.0


def test_trials_that_do_not_say_their_processor_yield_to_those_that_do():
    settings = settings_of(ONE)
    known = on("known", slower(results(settings), "finetune", 10.0))
    found = epoch_costs(*[results(settings)] * 3, known)
    assert found[WHOLE][0] == 40.0


def test_subnetworks_keep_at_most_as_many_devices_busy_as_they_are():
    """Two keep two devices of four busy; four on two devices take turns."""
    found = epoch_costs(results(settings_of(PAIR)))
    assert found[PAIRED] == [1.0, 0.5, 20.0]
    found = epoch_costs(results(settings_of(ONE)), devices=2)
    assert found == {FOUR: [2.0, 1.0, 40.0], WHOLE: [4.0, 2.0, 100.0]}


def test_operations_are_those_of_what_a_network_sees():
    settings = settings_of(STUDY.arms[0])
    count = functools.partial(outcomes.operations, settings, 10)
    assert count(WHOLE) > 4 * count(FOUR) > 0
    # The tiles of an image side by side have a quarter of its pixels.
    assert 3 < count(WHOLE) / count(Kind(False, 4, "tiles")) < 5
    assert 3 < count(FOUR) / count(Kind(True, 4, "tiles")) < 5


def curve(left):
    known = {FOUR: np.array([2.0, 0.5, 40.0]), WHOLE: np.array([4.0, 1.0, 100.0])}
    accuracies, costs = outcomes.curve(left, known, scratch=False)
    return accuracies.tolist(), costs.tolist()


def test_a_curve_costs_what_came_before():
    left = results(settings_of(ONE))
    assert curve(left) == ([0.6, 0.75], [[4.0, 1.0, 80.0], [8.0, 2.0, 180.0]])
    left["finetune"]["curve"].insert(1, {"epoch": 0.5, "accuracy": 0.65})
    assert curve(left)[1][1] == [6.0, 1.5, 130.0]  # a part of an epoch counts as that


def test_what_is_only_composed_needs_no_pace_of_the_global_network():
    left = results(settings_of(arms.averaged((2, 0), 0.1)))
    accuracies, costs = outcomes.curve(left, {FOUR: np.ones(3)}, scratch=False)
    assert accuracies.tolist() == [0.6]
    assert costs.tolist() == [[2.0, 2.0, 2.0]]


def test_the_cost_to_an_accuracy_is_that_of_the_first_point_with_it():
    found = outcome(ONE, [0.6, 0.75, 0.7])
    assert found.cost_to(0.7).tolist() == [2.0, 2.0, 2.0]
    assert found.cost_to(0.8) is None
