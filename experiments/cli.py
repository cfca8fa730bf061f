"""The command line: flags to settings, mistakes to one message and exit code 2."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from experiments import data
from experiments.results import summary
from experiments.run import console as progress
from experiments.run import lock, startup, workdir
from experiments.run import signals as stop
from experiments.settings import flags, validate
from experiments.settings.presets import PRESETS
from experiments.settings.schema import Settings

OK, LOST, BAD_INPUT, DIVERGED = 0, 1, 2, 3
STOPPED = 128  # and the signal's number: 130 for SIGINT, 143 for SIGTERM


class BadInput(Exception):
    """The user asked for what cannot be done; the message says why and what to do."""


def main(program: str, args: Sequence[str] | None = None) -> int:
    """Run a study from its command line.

    Args:
      program: how the study is called, for its messages: `python -m experiments.cifar10`.
      args: the flags; those of the process if not given.

    Returns:
      The exit code: 0 done; 1 the results could not be written (they are printed), or a sub-network
      that was trained alone; 2 bad input (one message on stderr); 3 a sub-network diverged; 130 or
      143 stopped by SIGINT or SIGTERM.
    """
    startup.keep_memory()  # before the reading of data starts threads
    try:
        with stop.listening() as asked:
            return study(parse(program, sys.argv[1:] if args is None else args), asked)
    except (BadInput, workdir.WorkdirError, data.DataError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except stop.Diverged as error:
        print(f"{program}: diverged: {error}", file=sys.stderr)
        return DIVERGED
    except stop.Stopped as error:
        print(f"{program}: stopped by {error}; the same command goes on", file=sys.stderr)
        return STOPPED + error.number


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
    _refuse(validate.problems(settings))
    return settings


def study(settings: Settings, asked: stop.Stop) -> int:
    """Run what the settings ask for, leave its results in the workdir and print them.

    A finished run of the same settings is printed again, and an unfinished one goes on. All that
    can be wrong with them is found before JAX is imported, and leaves no workdir.

    Returns:
      The exit code.
    """
    folder = settings.workdir or flags.default_workdir(settings)
    values, how = flags.flat(settings), settings.keeping
    voice = progress.voice(Console(stderr=True))
    if (results := workdir.finished(folder, values, fresh=how.fresh)) is not None:
        voice.say(f"this run is finished; its results, from {folder}:")
        summary.show(results, Console(), asked=settings.data.dataset)
        return OK
    with lock.locked(folder, how.only_subnet, voice.say):
        dataset = load(settings, voice)
        if how.fresh:
            workdir.clear(folder)
        startup.start_jax(settings.subnets)
        with workdir.opened(folder, values, how.only_subnet) as metrics:
            return _run(settings, dataset, folder, voice, metrics, asked)


def _run(
    settings: Settings,
    dataset: data.Dataset,
    folder: Path,
    voice: progress.Voice,
    metrics: workdir.Metrics,
    asked: stop.Stop,
) -> int:
    """The part that needs JAX."""
    from experiments.method import pipeline
    from experiments.run import checkpointing

    how = settings.keeping
    keeper = checkpointing.Keeper(
        folder, how, flags.flat(settings), checkpointing.fingerprint(dataset), voice, metrics, asked
    )
    if how.only_subnet is not None:
        if not pipeline.run_one(settings, dataset, keeper, how.only_subnet):
            voice.say(
                f"sub-network {how.only_subnet} is trained, and its end is not kept in {folder}: "
                "make room there, and the same command goes on"
            )
            return LOST
        voice.say(
            f"sub-network {how.only_subnet} is trained; the command without --only-subnet "
            f"collects it from {folder}"
        )
        return OK
    results = pipeline.run(settings, dataset, keeper)
    try:
        results = workdir.finish(folder, results)
        voice.say(f"results: {folder / workdir.RESULTS}")
    except OSError as error:
        voice.say(f"the results cannot be written to {folder}: {error.strerror}")
        summary.show(workdir.plain(results), Console(), asked=settings.data.dataset)
        return LOST
    summary.show(results, Console(), asked=settings.data.dataset)
    return OK


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
    _refuse(validate.data_problems(settings, *train.images.shape[:3]))
    return loaded._replace(train=train)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise BadInput("\n  ".join(problems))
