"""The settings: what is wrong with them is found, and said with a way out."""

import dataclasses
import math
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import dcjax
from experiments import cli
from experiments.settings import naming, validate
from experiments.settings.flags import (
    Data,
    Keeping,
    Machines,
    Network,
    Settings,
    Training,
    Transfer,
)
from experiments.settings.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_right(preset):
    assert PRESETS[preset].preset == preset
    assert validate.problems(PRESETS[preset]) == []


def test_the_choices_are_those_there_are():
    def choices(group, name):
        return get_args(get_type_hints(group)[name])

    assert choices(Settings, "preset") == tuple(PRESETS)
    assert choices(Network, "samples") == dcjax.samples.NAMES


@pytest.mark.parametrize(
    ("samples", "size"),
    [("channels", (32, 32)), ("tiles", (32, 32)), ("phases", (28, 30)), ("bands", (32, 32))],
)
def test_samples_that_do_not_fit_are_named(samples, size):
    settings = Settings(11, network=Network(width=11, samples=samples))
    (problem,) = validate.data_problems(settings, (1000, *size, 3))
    assert problem.startswith(f"--samples {samples}: ")
    assert "11" in problem


def test_paper_preset_is_the_published_size():
    paper = PRESETS["paper"]
    assert (paper.subnets, paper.network.depth, paper.network.width) == (4, 32, 64)
    assert (paper.training.batch_size, paper.training.learning_rate) == (128, 0.1)
    assert (paper.training.baseline_epochs, paper.training.weight_decay) == (160, 1e-4)


WRONG = [
    (Settings(subnets=0), "--subnets 0"),
    (Settings(subnets=-1), "--subnets -1"),
    (Settings(seed=-1), "--seed -1"),
    (Settings(subnets=3, network=Network(width=64)), "64 is not divisible by 3"),
    (Settings(network=Network(depth=9)), "8, 14, 20, 26, …, 998; the nearest is 8"),
    (Settings(network=Network(depth=2)), "6n+2"),
    (Settings(network=Network(model="cnn", depth=2)), "5, 8, 11, 14, …, 998; the nearest is 5"),
    (Settings(network=Network(width=0)), "--width 0"),
    (Settings(training=Training(subnet_epochs=-1)), "--subnet-epochs -1"),
    (Settings(training=Training(batch_size=0)), "--batch-size 0"),
    (Settings(training=Training(weight_decay=math.nan)), "--weight-decay nan"),
    (Settings(training=Training(warmup_epochs=math.inf)), "--warmup-epochs inf"),
    (Settings(training=Training(label_smoothing=1.0)), "--label-smoothing 1.0"),
    (Settings(training=Training(average=1.0)), "--average 1.0"),
    (Settings(transfer=Transfer(subnet_final_rate=0.9)), "at most the --learning-rate 0.8"),
    (Settings(transfer=Transfer(head_rate=-0.5)), "--head-rate -0.5"),
    (Settings(keeping=Keeping(only_subnet=1, fresh=True)), "--fresh with --only-subnet"),
    (Settings(data=Data(train_size=0)), "--train-size 0"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_mistake_is_named(settings, said):
    (problem,) = validate.problems(settings)
    assert said in problem


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -0.1, 0.0])
@pytest.mark.parametrize("name", ["learning_rate", "finetune_rate"])
def test_a_rate_is_a_positive_number(name, rate):
    settings = Settings(training=dataclasses.replace(Training(), **{name: rate}))
    assert validate.problems(settings) == [
        f"{naming.as_flag(name)} {rate}: expected a number from 1e-30 to 1e30"
    ]


def test_every_mistake_is_listed_at_once():
    settings = Settings(subnets=0, training=Training(batch_size=-1, average=math.nan))
    assert len(validate.problems(settings)) == 3


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((128, 32, 48, 3), []),
        ((127, 32, 32, 3), ["at most --batch-size 127", "--samples tiles"]),
        ((128, 12, 12, 3), ["sees only 12×4"]),
    ],
)
def test_data_that_does_not_fit_the_settings(images, said):
    settings = Settings(subnets=3, network=Network("cnn", width=48, samples="tiles"))
    problems = list(validate.data_problems(settings, images))
    assert len(problems) == len(said)
    for problem, words in zip(problems, said, strict=True):
        assert words in problem


def test_flat_settings_are_unique_names_of_all_fields():
    groups = (Network, Training, Transfer, Data, Keeping, Machines)
    fields = [field.name for group in groups for field in dataclasses.fields(group)]
    own = [field.name for field in dataclasses.fields(Settings)][: -len(groups)]
    assert sorted(naming.flat(Settings())) == sorted(own + fields)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        PRESETS["paper"],
        Settings(2, seed=5, training=Training(subnet_epochs=7), data=Data(train_size=None)),
        Settings(transfer=Transfer(carry_momentum=False, head_rate=0.5)),
    ],
)
def test_settings_as_flags_are_the_same_settings(settings):
    assert cli.parse("test", naming.as_args(settings)) == settings


@pytest.mark.parametrize(
    ("rates", "final", "peak"),
    [
        ({"learning_rate": 0.1}, 0.1, 0.1),
        ({"learning_rate": 0.1, "finetune_rate": 0.05}, 0.05, 0.05),
        ({"learning_rate": 0.1, "finetune_rate": 0.5}, 0.1, 0.5),
    ],
)
def test_fine_tuning_begins_where_the_subnetworks_end(rates, final, peak):
    settings = Settings(training=Training(**rates))
    assert (settings.subnet_final_rate, settings.finetune_rate) == (final, peak)
    assert validate.problems(settings) == []
    own = dataclasses.replace(settings, transfer=Transfer(subnet_final_rate=0.0))
    assert (own.subnet_final_rate, own.finetune_rate) == (0.0, peak)


def test_default_workdirs_tell_settings_apart():
    wide = dataclasses.replace(Settings(), network=Network(width=64))
    wider = dataclasses.replace(Settings(), network=Network(width=128))
    other = [Settings(), Settings(seed=1), Settings(subnets=2), PRESETS["paper"], wide, wider]
    assert len({naming.default_workdir(settings) for settings in other}) == len(other)
    moved = dataclasses.replace(wide, data=Data(data_dir=Path("elsewhere")))
    assert naming.default_workdir(moved) == naming.default_workdir(wide)


def test_default_workdir_of_a_folder_is_one_name(tmp_path):
    settings = Settings(data=Data(dataset=f"folder:{tmp_path}"))
    assert naming.default_workdir(settings).parent == Path("runs")


def test_each_folder_of_images_has_a_workdir_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["猫", "犬", "Cats", "cats", "a/cats", "a-cats", "x" * 250, "x" * 251, str(tmp_path)]
    runs = [naming.default_workdir(Settings(data=Data(dataset=f"folder:{path}"))) for path in paths]
    assert len({*map(str, runs)}) == len(paths)
    assert all(len(run.name.encode()) <= 255 for run in runs)
    same = Settings(data=Data(dataset=f"folder:{tmp_path / 'a'}/../Cats"))
    assert naming.default_workdir(same).name.endswith(runs[2].name[-8:])


def test_the_home_directory_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = naming.expanded(
        Settings(workdir=Path("~/run"), data=Data(dataset="folder:~/cats", data_dir=Path("~/data")))
    )
    assert settings.workdir == Path("/home/me/run")
    assert settings.data == Data(dataset="folder:/home/me/cats", data_dir=Path("/home/me/data"))
    with pytest.raises(cli.Ended, match="a path with ~"):
        cli.parse("it", ["--workdir=~nobody-by-this-name/run"])


def test_too_few_steps_are_said_with_flags_that_make_enough():
    quick = PRESETS["quick"]
    for images in (128, 200, 480, 1400, 2047, 2176, 10_000):
        note = validate.too_few_steps(quick, images)
        assert bool(note) == (6 * (images // 128) < 100), images
        if note:
            flags = note.partition("learn well: ")[2].partition(" makes ")[0].split()
            assert validate.too_few_steps(cli.parse("it", flags), images) == "", note


def test_few_steps_are_right_without_training():
    nothing = dataclasses.replace(PRESETS["quick"].training, subnet_epochs=0, baseline_epochs=0)
    assert validate.too_few_steps(Settings(training=nothing), 480) == ""
    assert validate.too_few_steps(PRESETS["digits"], 1400) == ""
