"""The command line: flags to settings, mistakes to one message and exit code 2."""

import argparse
import sys
from collections.abc import Sequence

import tyro
from rich.console import Console

from experiments import config, data, progress, report, startup, workdir
from experiments.config import PRESETS, Settings

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130


class BadInput(Exception):
    """The user asked for what cannot be done; the message says why and what to do."""


def main(program: str, args: Sequence[str] | None = None) -> int:
    """Run a study from its command line.

    Args:
      program: how the study is called, for its messages: `python -m experiments.cifar10`.
      args: the flags; those of the process if not given.

    Returns:
      The exit code: 0 done, 2 bad input (one message on stderr), 130 interrupted.
    """
    try:
        study(parse(program, sys.argv[1:] if args is None else args))
    except (BadInput, workdir.WorkdirError, data.DataError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command starts it again", file=sys.stderr)
        return INTERRUPTED
    return OK


def parse(program: str, args: Sequence[str]) -> Settings:
    """The settings that the flags ask for: the preset's, and over them what is given.

    Raises:
      BadInput: all that is wrong with the values, at once.
      SystemExit: for `--help`, and for flags that cannot be read.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")  # without its value: the full parser says so
    preset = PRESETS.get(first.parse_known_args(args)[0].preset, PRESETS["quick"])
    settings = tyro.cli(
        Settings, prog=program, args=args, default=preset, config=(tyro.conf.OmitArgPrefixes,)
    )
    _refuse(config.problems(settings))
    return settings


def study(settings: Settings) -> None:
    """Run what the settings ask for, leave its results in the workdir and print them.

    A finished run of the same settings is printed again. All that can be wrong is found before JAX
    is imported, and leaves no workdir.
    """
    folder = settings.workdir or config.default_workdir(settings)
    flags = config.flat(settings)
    voice = progress.voice(Console(stderr=True))
    results = workdir.finished(folder, flags)
    if results is not None:
        voice.say(f"this run is finished; its results, from {folder}:")
    else:
        dataset = load(settings, voice)
        startup.start_jax(settings.subnets)
        from experiments import pipeline

        with workdir.opened(folder, flags) as log:
            results = pipeline.run(settings, dataset, voice, log)
        results = workdir.finish(folder, results)
        voice.say(f"results: {folder / workdir.RESULTS}")
    report.show(results, Console())


def load(settings: Settings, voice: progress.Voice) -> data.Dataset:
    """The data set, with the part of its training images that the settings ask for.

    Raises:
      DataError: it cannot be had.
      BadInput: it does not go with the other settings.
    """
    chosen = settings.data
    loaded = data.load(chosen.dataset, data_dir=chosen.data_dir, notify=voice.say)
    size = min(chosen.train_size or len(loaded.train.labels), len(loaded.train.labels))
    train = data.subset(loaded.train, size, settings.seed, len(loaded.classes))
    _refuse(config.data_problems(settings, *train.images.shape[:3]))
    return loaded._replace(train=train)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise BadInput("\n  ".join(problems))
