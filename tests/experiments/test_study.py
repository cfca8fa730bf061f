"""The study: its trials can be run and resumed, and its tables follow from their results."""

import functools
import json
import shutil
import sys
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import pytest

from experiments.run import provenance as environment
from experiments.run import workdir
from experiments.settings import naming, validate
from experiments.study import __main__ as command
from experiments.study import arms, costs, outcomes, tables, trials
from experiments.study.costs import Cost, Narrow, Point, Wide
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


SHARING = ("DCJAX_JOBS", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(command, "STUDIES", {"small": STUDY})
    monkeypatch.setattr(command, "LENGTHS", {})


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


@pytest.mark.parametrize("records", sorted((ROOT / "docs" / "study").glob("*.json")))
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
    with pytest.raises(ValueError, match="no such settings: widht"):
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

    def curve(epochs, start, gain):
        return [
            {
                "epoch": e,
                "device_seconds": 4.0 * e,
                "seconds": 4.0 * e,
                "accuracy": start + gain * e,
            }
            for e in range(epochs + 1)
        ]

    gain = 0.0 if settings.transfer.head_rate else 0.15
    return {
        "subnets": settings.subnets,
        "seed": seed,
        "model": {"classes": 10, "samples": settings.network.samples},
        "versions": {"jax": "0"},
        "devices": {"kind": "cpu", "processor": None, "jobs": 1},
        "subnets_phase": {
            "epochs": training.subnet_epochs,
            "device_seconds": 0.5 * settings.subnets * training.subnet_epochs,
            "accuracy": [0.5] * settings.subnets,
        },
        "finetune": {"curve": curve(training.finetune_epochs, 0.6, gain)},
        "baseline": {"curve": curve(training.baseline_epochs, 0.1, 0.3)},
    }


@pytest.fixture
def ran(small, monkeypatch):
    """Runs leave their results at once; the commands that were given."""
    commands = []

    def run(args, **how):
        folder = Path(args[args.index("--workdir") + 1])
        trial = next(t for t in declared(folder.parents[1]) if t.folder == folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = naming.flat(trial.settings)
        (folder / workdir.SETTINGS).write_text(json.dumps(values))
        workdir.finish(folder, results(trial.settings))
        commands.append(args)
        if how.get("env"):
            print(json.dumps({n: how["env"].get(n) for n in SHARING}), file=how["stdout"])

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
    call = trials._call

    def counting(*args):
        kept.append(len(trials.read(tmp_path / "records" / "small.json")))
        call(*args)

    monkeypatch.setattr(trials, "_call", counting)
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


def test_wrong_options_are_named(small, monkeypatch, tmp_path, capsys):
    code, _ = main(monkeypatch, tmp_path, "--seeds", "0", "--minutes", "-1", "--only", "smal")
    assert code == 2
    said = capsys.readouterr().err
    assert "--only smal: choose from small" in said
    assert "--seeds 0: expected at least 1" in said
    assert "--minutes -1.0: expected at least 0" in said
    assert main(monkeypatch, tmp_path, "--jobs", "0")[0] == 2
    assert "--jobs 0: expected at least 1" in capsys.readouterr().err


def test_trials_at_once_share_the_device_and_say_so(ran, monkeypatch, tmp_path):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert main(monkeypatch, tmp_path, "--jobs", "3")[0] == 0
    assert len(ran) == 8
    logs = list((tmp_path / "runs" / "small").glob("*.log"))
    assert len(logs) == 8  # "rate-0.1-seed0" is no suffix
    assert {log.read_text() for log in logs} == {
        json.dumps(dict(zip(SHARING, ("3", "0.300"), strict=True))) + "\n"
    }


def test_none_begins_after_one_of_several_has_failed(small, monkeypatch, tmp_path, capsys):
    fails = [sys.executable, "-c", "raise SystemExit('why')"]
    begun = []
    monkeypatch.setattr(trials, "command", lambda trial, _: begun.append(trial) or fails)
    assert main(monkeypatch, tmp_path, "--jobs", "2")[0] == 1
    assert len(begun) <= 3  # two at once, and one may begin before the first failure is known
    log = tmp_path / "runs" / "small" / "scratch-2-rate-0.1-seed0.log"
    assert f"failed; its output is in {log}" in capsys.readouterr().err
    assert log.read_text() == "why\n"


def test_a_run_says_how_many_shared_the_machine(monkeypatch):
    assert environment.devices({})["jobs"] == 1
    monkeypatch.setenv("DCJAX_JOBS", "3")
    assert environment.devices({})["jobs"] == 3


def test_without_matplotlib_there_is_no_report(ran, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert report(monkeypatch, tmp_path)[0] == 2
    assert "pip install -e '.[study]'" in capsys.readouterr().err


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


def test_time_may_run_out(ran, monkeypatch, tmp_path, capsys):
    code, text = main(monkeypatch, tmp_path, "--minutes", "0")
    assert code == 75
    assert not ran
    capsys.readouterr()
    assert report(monkeypatch, tmp_path) == (0, text)  # nothing to write
    assert "small: 0 trials of 8" in capsys.readouterr().err


def test_a_study_without_a_place_in_the_document_is_left_out(ran, monkeypatch, tmp_path, capsys):
    main(monkeypatch, tmp_path)
    (tmp_path / "results.md").write_text("no place")
    assert report(monkeypatch, tmp_path) == (0, "no place")
    assert "the document has no place <!-- small -->" in capsys.readouterr().err
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
    curve = [Point(Cost(n, n, n), a) for n, a in enumerate(accuracies, start=1)]
    return outcomes.Outcome(trials.Trial(STUDY, arm, seed, Path(arm.name), Path("r")), {}, curve)


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
    assert "tiles-2+1-rate-0.1" in without


def test_the_gain_is_that_of_the_best_arms_seed_by_seed(tmp_path):
    slow, fast = (arms.scratch(2, rate) for rate in (0.1, 0.2))
    narrow = arms.averaged((2, 1), 0.1)
    found = [outcome(slow, [0.5]), outcome(slow, [0.6], 1), outcome(narrow, [0.6])]
    found += [outcome(narrow, [0.8], 1), outcome(fast, [0.9])]  # one seed only: it tunes
    gain = outcomes.gain(found)
    assert (gain.width, gain.epochs) == (8, 2)
    assert gain.points == pytest.approx([10.0, 20.0])
    assert outcomes.gain(found[:2]) is None
    assert outcomes.gain([outcome(slow, [0.5]), outcome(narrow, [0.6], 1)]) is None

    document = tmp_path / "results.md"
    document.write_text("<!-- length -->\n<!-- end -->\n")
    found = [each._replace(results={"versions": {"jax": "0"}}) for each in found]
    tables.report_lengths(document, [[], found[:2], found])
    row = "| 8 | 2 | scratch-2-rate-0.1 | 55.0 ± 7.1 | averaged-2+1-rate-0.1 | 70.0 ± 14.1 |"
    assert f"{row} 1.00 | +15.0 ± 7.1 | 2 |" in document.read_text()
    assert (tmp_path / "results-length.svg").stat().st_size > 1000


FOUR, WHOLE = Narrow(4, "replicate"), Wide("replicate", 1)


def epoch_costs(*trials, devices=4):
    return costs.costs(trials, lambda kind: 100.0 if kind == WHOLE else 10.0, devices)


def slower(each, phase, factor=100.0):
    """The same results, a phase of which took so many times as long."""
    for entry in each[phase]["curve"]:
        entry["device_seconds"] *= factor
    return each


def test_the_pace_is_that_of_the_phase_that_was_disturbed_least():
    settings = settings_of(ONE)
    slow = slower(results(settings), "finetune")
    slow["subnets_phase"]["device_seconds"] *= 100
    found = epoch_costs(slow, slow, results(settings))
    assert found == {FOUR: Cost(2.0, 0.5, 40.0), WHOLE: Cost(4.0, 1.0, 100.0)}


def test_a_part_of_an_epoch_counts_as_that():
    settings = settings_of(ONE)
    finer = results(settings)
    start, *rest = finer["finetune"]["curve"]
    half = start | {"epoch": 0.5, "device_seconds": 2.0, "accuracy": 0.65}
    finer["finetune"]["curve"] = [start, half, *rest]
    found = epoch_costs(finer)
    assert found[WHOLE] == Cost(4.0, 1.0, 100.0)
    before, within, after, *_ = costs.curve(finer, found, scratch=False)
    assert within == Point(before.cost.plus(Cost(2.0, 0.5, 50.0), 1), 0.65)
    assert after.cost == before.cost.plus(found[WHOLE], 1)


def on(processor, each):
    each["devices"]["processor"] = processor
    return each


def test_another_processor_gives_no_pace_but_for_what_the_first_has_not_run():
    settings = settings_of(ONE)
    own = slower(results(settings), "finetune", 10.0)
    other, alone = (on("another", results(settings)) for _ in range(2))
    alone["subnets"] = 2
    found = epoch_costs(*[on("most", own)] * 3, other, alone)
    assert found[WHOLE].device_seconds == 40.0
    assert found[Narrow(2, "replicate")].device_seconds == 2.0


def test_trials_that_do_not_say_their_processor_yield_to_those_that_do():
    settings = settings_of(ONE)
    known = on("known", slower(results(settings), "finetune", 10.0))
    found = epoch_costs(*[results(settings)] * 3, known)
    assert found[WHOLE].device_seconds == 40.0


def test_trials_beside_others_give_no_pace_but_for_what_has_not_run_alone():
    settings = settings_of(ONE)
    alone = slower(results(settings), "finetune", 10.0)
    beside, other = results(settings), results(settings)
    for each in (beside, other):
        each["devices"]["jobs"] = 4
    other["subnets"] = 2
    found = epoch_costs(beside, alone, other)
    assert found[WHOLE].device_seconds == 40.0
    assert found[Narrow(2, "replicate")].device_seconds == 2.0


def test_what_is_only_composed_needs_no_pace_of_the_global_network():
    settings = settings_of(arms.averaged((2, 0), 0.1))
    left = results(settings)
    assert [point.cost for point in costs.curve(left, epoch_costs(left), scratch=False)] == [
        Cost(4.0, 1.0, 80.0)
    ]


def test_subnetworks_keep_at_most_as_many_devices_busy_as_they_are():
    """Two keep two devices of four busy; four on two devices take turns."""
    found = epoch_costs(results(settings_of(PAIR)))
    assert found[Narrow(2, "replicate")] == Cost(1.0, 0.5, 20.0)
    found = epoch_costs(results(settings_of(ONE)), devices=2)
    assert found == {FOUR: Cost(2.0, 1.0, 40.0), WHOLE: Cost(4.0, 2.0, 100.0)}


def test_operations_are_those_of_what_a_network_sees():
    settings = settings_of(STUDY.arms[0])
    count = functools.partial(outcomes.operations, settings, 10)
    assert count(WHOLE) > 4 * count(FOUR) > 0
    # The tiles of an image side by side have a quarter of its pixels.
    assert 3 < count(WHOLE) / count(Wide("tiles", 4)) < 5
    assert 3 < count(FOUR) / count(Narrow(4, "tiles")) < 5


def test_a_curve_costs_what_came_before():
    known = {FOUR: Cost(2.0, 0.5, 40.0), WHOLE: Cost(4.0, 1.0, 100.0)}
    points = costs.curve(results(settings_of(ONE)), known, scratch=False)
    assert points == [
        Point(Cost(4.0, 1.0, 80.0), 0.6),
        Point(Cost(8.0, 2.0, 180.0), 0.75),
    ]
    assert costs.first_reaching(points, 0.7) == points[1]
    assert costs.first_reaching(points, 0.8) is None


def test_the_fall_is_below_the_start():
    cost = Cost(0.0, 0.0, 0.0)
    points = [Point(cost, accuracy) for accuracy in (0.6, 0.55, 0.7)]
    assert costs.fall(points) == pytest.approx(0.05)
    assert costs.fall(points[2:]) == 0
