"""The study: its grid can be run, it goes on where it was, and its accounts are what they say."""

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
from experiments.settings import schema
from experiments.study import __main__ as command
from experiments.study import arms, costs, tables, trials
from experiments.study.costs import Cost, Narrow, Point, Wide

STUDY = arms.Study(
    "a study",
    {"dataset": "digits", "train_size": 100, "batch_size": 10, "width": 8},
    (
        arms.scratch(2, 0.1),
        arms.scratch(2, 0.2, seeds=1),
        arms.one_schedule("one", (2, 1), 0.1),
        arms.one_schedule("frozen", (2, 1), 0.1, seeds=1, head_rate=0.5),
        arms.one_schedule("widened", (2, 1), 0.1, label_smoothing=0.1)._replace(kind="widened"),
    ),
)


SHARING = ("DCJAX_JOBS", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(arms, "STUDIES", {"small": STUDY})


@pytest.mark.parametrize("name", arms.STUDIES)
def test_every_declared_trial_can_be_run(name):
    found = list(trials.trials((name,), Path("runs"), Path("records"), seeds=3))
    assert len({trial.folder for trial in found}) == len(found)
    settings = [schema.flat(trial.settings) for trial in found]
    assert len({json.dumps(each, default=str) for each in settings}) == len(found)
    for trial in found:
        assert schema.problems(trial.settings) == []
        assert not trial.settings.training.baseline_epochs or trial.arm.kind == "scratch"


def test_a_flag_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no such settings: widht"):
        arms.with_flags(schema.Settings(), {"widht": 3})


def test_quoted_arms_have_all_seeds_and_others_one(small):
    seeds = {}
    for trial in trials.trials(("small",), Path("runs"), Path("records"), seeds=3):
        seeds.setdefault(trial.arm.name, []).append(trial.seed)
    assert seeds["scratch-2-rate-0.1"] == [0, 1, 2]
    assert seeds["frozen-2+1-rate-0.1"] == [0]
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

    gain = 0.0 if settings.transfer.head_rate == 0.5 else 0.15
    count = 1 if settings.training.label_smoothing else 4
    seconds = 0.5 * count * training.subnet_epochs
    return {
        "subnets": 4,
        "seed": seed,
        "model": {"classes": 10, "samples": settings.network.samples},
        "versions": {"jax": "0"},
        "devices": {},
        "subnets_phase": {
            "epochs": training.subnet_epochs,
            "device_seconds": seconds,
            "accuracy": [0.5] * 4,
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
        trial = next(
            t
            for t in trials.trials(("small",), folder.parents[1], Path("records"), 2)
            if t.folder == folder
        )
        folder.mkdir(parents=True, exist_ok=True)
        flags = schema.flat(trial.settings)
        (folder / workdir.SETTINGS).write_text(json.dumps(flags))
        if trial.settings.training.subnet_epochs:
            name = "subnet-0" if trial.settings.training.label_smoothing else "subnets"
            (folder / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
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
    (tmp_path / "BENCHMARKS.md").write_text("<!-- small -->\n<!-- end -->\n")
    flags = ["--seeds", "2", "--runs", str(tmp_path / "runs"), "--output", str(document)]
    flags += ["--records", str(tmp_path / "records")]
    flags += ["--summary", str(tmp_path / "BENCHMARKS.md"), *args]
    monkeypatch.setattr("sys.argv", ["study", "--only", "small", *flags])
    return command.main(), document.read_text()


def test_a_study_runs_reports_and_goes_on(ran, monkeypatch, tmp_path, capsys):
    code, text = main(monkeypatch, tmp_path)
    assert code == 0
    assert len(ran) == 8
    assert text.startswith("before\n<!-- small -->\n    python -m experiments.study --only small")
    assert text.endswith("<!-- end -->\nafter\n")
    # 2 epochs of 2 and one of 4 device-seconds; four of them at once in the first phase.
    (row,) = [line for line in text.splitlines() if line.startswith("| one-2+1-rate-0.1 | 2 |")]
    assert row.split(" | ")[2:8] == ["50.0 ± 0.0", "60.0 ± 0.0", "0.0", "75.0 ± 0.0", "8", "2"]
    # From scratch 70 % take 8 device-seconds, and so do 75 % here.
    (row,) = [line for line in text.splitlines() if line.startswith("| one-2+1-rate-0.1 | 2 of 2")]
    assert row.split(" | ")[2:4] == ["1.00×", "1.00×"]
    assert "| frozen-2+1-rate-0.1 | 0 of 1 | – | – | – | -10.0 |" in text
    assert (tmp_path / "results-small.svg").stat().st_size > 1000
    summary = (tmp_path / "BENCHMARKS.md").read_text()
    assert "| one-2+1-rate-0.1 | 2 of 2" in summary
    assert "| one-2+1-rate-0.1 | 2 |" not in summary
    assert "with the sub-networks of one-2+1-rate-0.1" in capsys.readouterr().err
    assert main(monkeypatch, tmp_path) == (0, text)
    assert len(ran) == 8


def test_arms_can_be_chosen(ran, monkeypatch, tmp_path, capsys):
    main(monkeypatch, tmp_path, "--arms", "frozen-2+1-rate-0.1")
    code, text = main(monkeypatch, tmp_path, "--arms", "one-2+1-rate-0.1", "scratch-2-rate-0.1")
    assert code == 0
    ends = [Path(args[args.index("--workdir") + 1]).name for args in ran]
    assert ends == ["frozen-2+1-rate-0.1-seed0"] + [
        f"{arm}-2{rest}-rate-0.1-seed{seed}"
        for seed in (0, 1)
        for arm, rest in (("one", "+1"), ("scratch", ""))
    ]
    assert "with the sub-networks of frozen-2+1-rate-0.1" in capsys.readouterr().err
    assert "| frozen-2+1-rate-0.1 | 1 |" in text  # not chosen this time, but there
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
    assert f"what it said: {log}" in capsys.readouterr().err
    assert log.read_text() == "why\n"


def test_a_run_says_how_many_shared_the_machine(monkeypatch):
    assert environment.devices({})["jobs"] == 1
    monkeypatch.setenv("DCJAX_JOBS", "3")
    assert environment.devices({})["jobs"] == 3


def test_without_what_draws_the_curves_nothing_is_begun(ran, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(monkeypatch, tmp_path)[0] == 2
    assert "pip install -e '.[study]'" in capsys.readouterr().err
    assert not ran


def test_results_stay_where_the_runs_do_not(ran, monkeypatch, tmp_path):
    _, text = main(monkeypatch, tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert main(monkeypatch, tmp_path) == (0, text)
    assert len(ran) == 8
    # A record of other settings is no record of the trial.
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
    assert "small: 0 trials of 8" in capsys.readouterr().err
    assert text == "before\n<!-- small -->\n<!-- end -->\nafter\n"
    assert not ran


def test_a_document_without_a_place_is_said(ran, monkeypatch, tmp_path, capsys):
    (tmp_path / "results.md").write_text("no place")
    assert main(monkeypatch, tmp_path)[0] == 2
    assert "the document has no place <!-- small -->" in capsys.readouterr().err


def test_a_folder_of_another_run_is_said(ran, monkeypatch, tmp_path, capsys):
    main(monkeypatch, tmp_path, "--arms", "frozen-2+1-rate-0.1")
    folder = tmp_path / "runs" / "small" / "frozen-2+1-rate-0.1-seed0"
    (folder / workdir.SETTINGS).write_text('{"seed": 5}')
    for more in ([], ["--report"]):
        assert main(monkeypatch, tmp_path, *more)[0] == 2
        assert f"the workdir {folder} holds a run of other settings" in capsys.readouterr().err


def test_a_trial_that_fails_is_said(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trials, "command", lambda *_: ["false"])
    assert main(monkeypatch, tmp_path)[0] == 1
    assert "a trial ended with 1; the same command goes on" in capsys.readouterr().err


def test_what_comes_later_does_not_keep_subnetworks_from_being_lent(small):
    one, frozen, widened = (
        next(
            t
            for t in trials.trials(("small",), Path("runs"), Path("records"), 1)
            if t.arm.name.startswith(name)
        )
        for name in ("one", "frozen", "widened")
    )
    assert trials._of_subnets(one) == trials._of_subnets(frozen)
    assert trials._of_subnets(one) != trials._of_subnets(widened)
    assert set(trials.LATER) < {*schema.flat(schema.Settings())}


def test_an_arm_is_held_against_scratch_with_its_own_samples(small):
    def finished(arm, accuracies):
        folder = Path("runs") / arm.name
        curve = [Point("any", Cost(n, n, n), a) for n, a in enumerate(accuracies, start=1)]
        return tables.Finished(trials.Trial("small", arm, 0, folder, Path("records")), {}, curve)

    whole = finished(arms.scratch(2, 0.1), [0.5, 0.9])
    bands = finished(arms.scratch(2, 0.1, name="scratch-bands", samples="bands"), [0.5, 0.6])
    arm = finished(arms.one_schedule("bands", (2, 1), 0.1, samples="bands"), [0.7])
    tiles = finished(arms.one_schedule("tiles", (2, 1), 0.1, samples="tiles"), [0.7])
    text = tables._speedups([whole, bands, arm, tiles])
    against_whole, rest = text.split("\n\nAgainst `scratch-bands-2-rate-0.1`")
    against_bands, without = rest.split("\n\nNo arm from scratch")
    assert against_whole.startswith("Against `scratch-2-rate-0.1`")
    assert "| bands-2+1" not in against_whole
    assert "| bands-2+1-rate-0.1 | 1 of 1 | 2.00× | 2.00× | 2.00× | +10.0 |" in against_bands
    assert "tiles-2+1-rate-0.1" in without


FOUR, WHOLE = Narrow(4, 4, "replicate"), Wide("replicate", 1)


def epoch_costs(*trials, devices=4):
    return costs.costs(trials, lambda kind: 100.0 if kind == WHOLE else 10.0, devices)


def slower(each, phase, factor=100.0):
    """The same results, a phase of which took so many times as long."""
    for entry in each[phase]["curve"]:
        entry["device_seconds"] *= factor
    return each


def test_the_pace_is_that_of_the_phase_that_was_disturbed_least():
    settings = arms.settings(STUDY, STUDY.arms[2], 0)
    slow = slower(results(settings), "finetune")
    slow["subnets_phase"]["device_seconds"] *= 100
    found = epoch_costs((slow, False), (slow, False), (results(settings), False))
    assert found == {FOUR: Cost(2.0, 0.5, 40.0), WHOLE: Cost(4.0, 1.0, 100.0)}


def test_a_part_of_an_epoch_counts_as_that():
    settings = arms.settings(STUDY, STUDY.arms[2], 0)
    finer = results(settings)
    start, *rest = finer["finetune"]["curve"]
    half = start | {"epoch": 0.5, "device_seconds": 2.0, "accuracy": 0.65}
    finer["finetune"]["curve"] = [start, half, *rest]
    found = epoch_costs((finer, False))
    assert found[WHOLE] == Cost(4.0, 1.0, 100.0)
    before, within, after, *_ = costs.curve(finer, found, scratch=False)
    assert within == Point("finetune", before.cost + Cost(2.0, 0.5, 50.0), 0.65)
    assert after.cost == before.cost + found[WHOLE]


def on(processor, each):
    each["devices"] = {"processor": processor}
    return each


def test_another_processor_gives_no_pace_but_for_what_the_first_has_not_run():
    settings = arms.settings(STUDY, STUDY.arms[2], 0)
    own = slower(results(settings), "finetune", 10.0)
    other, alone = (on("another", results(settings)) for _ in range(2))
    alone["subnets"] = 2
    found = epoch_costs(*[(on("most", own), False)] * 3, (other, False), (alone, False))
    assert found[WHOLE].device_seconds == 40.0
    assert found[Narrow(2, 2, "replicate")].device_seconds == 2.0


def test_trials_that_do_not_say_their_processor_yield_to_those_that_do():
    settings = arms.settings(STUDY, STUDY.arms[2], 0)
    known = on("known", slower(results(settings), "finetune", 10.0))
    found = epoch_costs(*[(results(settings), False)] * 3, (known, False))
    assert found[WHOLE].device_seconds == 40.0


def test_trials_beside_others_give_no_pace_but_for_what_has_not_run_alone():
    settings = arms.settings(STUDY, STUDY.arms[2], 0)
    alone = slower(results(settings), "finetune", 10.0)
    beside, other = results(settings), results(settings)
    for each in (beside, other):
        each["devices"] = {"jobs": 4}
    other["subnets"] = 2
    found = epoch_costs((beside, False), (alone, False), (other, False))
    assert found[WHOLE].device_seconds == 40.0
    assert found[Narrow(2, 2, "replicate")].device_seconds == 2.0


def test_what_is_only_composed_needs_no_pace_of_the_global_network():
    settings = arms.settings(STUDY, arms.composed(2, 0.1), 0)
    left = results(settings)
    assert [
        point.cost for point in costs.curve(left, epoch_costs((left, False)), scratch=False)
    ] == [Cost(4.0, 1.0, 80.0)]


def test_subnetworks_keep_at_most_as_many_devices_busy_as_they_are():
    """The widened one runs on one device; four on two devices take turns."""
    found = epoch_costs((results(arms.settings(STUDY, STUDY.arms[4], 0)), True))
    assert found[Narrow(4, 1, "replicate")] == Cost(0.5, 0.5, 10.0)
    found = epoch_costs((results(arms.settings(STUDY, STUDY.arms[2], 0)), False), devices=2)
    assert found == {FOUR: Cost(2.0, 1.0, 40.0), WHOLE: Cost(4.0, 2.0, 100.0)}


def test_operations_are_those_of_what_a_network_sees():
    settings = arms.settings(STUDY, STUDY.arms[0], 0)
    count = functools.partial(tables._operations, settings, 10)
    assert count(WHOLE) > 4 * count(FOUR) > 0
    # The tiles of an image side by side have a quarter of its pixels.
    assert 3 < count(WHOLE) / count(Wide("tiles", 4)) < 5
    assert 3 < count(FOUR) / count(Narrow(4, 4, "tiles")) < 5


def test_a_curve_costs_what_came_before():
    known = {FOUR: Cost(2.0, 0.5, 40.0), WHOLE: Cost(4.0, 1.0, 100.0)}
    points = costs.curve(results(arms.settings(STUDY, STUDY.arms[2], 0)), known, scratch=False)
    assert points == [
        Point("subnets", Cost(4.0, 1.0, 80.0), 0.6),
        Point("finetune", Cost(8.0, 2.0, 180.0), 0.75),
    ]
    assert costs.first_reaching(points, 0.7) == points[1]
    assert costs.first_reaching(points, 0.8) is None


def test_the_fall_is_below_the_start():
    cost = Cost(0.0, 0.0, 0.0)
    points = [Point("finetune", cost, accuracy) for accuracy in (0.6, 0.55, 0.7)]
    assert costs.fall(points) == pytest.approx(0.05)
    assert costs.fall(points[2:]) == 0


def test_a_document_without_a_place_is_refused(ran, monkeypatch, tmp_path):
    (tmp_path / "results.md").write_text("no place\n")
    assert main(monkeypatch, tmp_path)[0] == 2
    assert tables.spread([50.0, 50.0]) == "50.0 ± 0.0"
