"""The command line: flags to settings, mistakes to one message and exit code 2."""

import argparse
import contextlib
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments import data
from experiments.report import write
from experiments.results import summary
from experiments.results.schema import Results
from experiments.run import console as progress
from experiments.run import lock, machines, signals, startup, trackers, workdir
from experiments.settings import help, naming, own, validate
from experiments.settings.flags import Settings
from experiments.settings.presets import PRESETS

OK, LOST, BAD_INPUT, DIVERGED = 0, 1, 2, 3
STOPPED = machines.STOPPED
USERS = (
    workdir.WorkdirError,
    data.DataError,
    startup.StartError,
    trackers.TrackerError,
    own.OwnError,
)
"""Errors that the person at the command line can mend; each is one message."""
COLLECT = "; the command without --only-subnet collects it from the same workdir"
NO_ROOM = ", but could not be saved: make room in the workdir; the same command continues"


class Ended(Exception):
    """The run cannot go on; the message says why and what to do."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def main(program: str, args: Sequence[str] | None = None, **defaults: Any) -> int:
    """Run an experiment from its command line.

    Args:
      program: the command, for messages: `python -m experiments.cifar10`.
      args: the flags; by default those of the process.
      defaults: settings in which the experiment differs from its preset.

    Returns:
      The exit code: 0 done; 1 the results, or a sub-network that was trained alone, could not be
      written or printed; 2 bad input (one message on stderr); 3 a sub-network diverged; 6 another
      process of the job has died or has not come; 128 + the number of the signal that stopped it,
      such as 130 for SIGINT and 143 for SIGTERM.
    """
    startup.keep_memory()  # before reading the data starts threads
    progress.replace_unknown_characters()
    if not os.environ.get("COLUMNS", "unset").strip("0"):  # rich would print nothing
        del os.environ["COLUMNS"]

    def start() -> int:
        with signals.listening() as stop:
            given = sys.argv[1:] if args is None else args
            return run(parse(program, given, **defaults), stop, program)

    return _code(program, start)


def _code(program: str, body: Callable[[], int], *, first: bool = True) -> int:
    """Run the body; say what ends it, and return the exit code.

    A signal is said by the first process of a job for all.
    """
    try:
        return body()
    except USERS as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except machines.JoinError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return machines.LOST_PEER
    except Ended as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.code
    except signals.Stopped as error:
        if first:
            print(f"{program}: stopped by {error}; the same command continues", file=sys.stderr)
        return STOPPED + error.number


def parse(program: str, args: Sequence[str], **defaults: Any) -> Settings:
    """Return the settings of a command: its preset's, changed by its defaults and other flags.

    Raises:
      Ended: flags cannot be read, or values are wrong; the message lists all of them.
      SystemExit: for `--help`, after printing it.
    """
    # An empty path would be the current folder, and is more likely a variable that is not set.
    _refuse(f"{flag} has an empty value" for flag in _empty(args))
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")  # tyro reports a missing value
    usual = PRESETS[defaults.get("preset", "quick")]
    preset = PRESETS.get(first.parse_known_args(args)[0].preset, usual)
    preset = naming.changed(preset, defaults | {"preset": preset.preset})
    if {"-h", "--help", "--help-all"} & {*args}:
        try:
            help.show(program, preset, everything="--help-all" in args)
            sys.stdout.flush()
        except OSError:  # such as a pipe that nobody reads any longer
            _drop_stdout()
        raise SystemExit(OK)
    try:
        settings = help.read(
            Settings, program, args, default=preset, config=(tyro.conf.OmitArgPrefixes,)
        )
    except ValueError as error:
        raise Ended(BAD_INPUT, f"error: {error}") from None
    _refuse(validate.problems(settings))
    try:
        return naming.expanded(settings)
    except RuntimeError as error:
        raise Ended(BAD_INPUT, f"error: a path with ~: {error}") from None


def _empty(args: Sequence[str]) -> Iterator[str]:
    """Yield the flags that are followed by nothing.

    >>> [*_empty(["--seed", "1", "--workdir", "", "--data-dir="])]
    ['--workdir', '--data-dir']
    >>> [*_empty([])]
    []
    """
    for flag, value in itertools.pairwise([*args, None]):
        if flag and flag.startswith("--") and (value == "" or flag.endswith("=")):
            yield flag.removesuffix("=")


def run(settings: Settings, stop: signals.Stop, program: str = "experiments") -> int:
    """Run the method, with the other processes if there are any; return the exit code."""

    def say(line: str) -> None:
        print(f"{program}: {line}", file=sys.stderr, flush=True)

    if not machines.join(settings, say):
        return _run(settings, stop)
    first = machines.number(settings.machines) == 0
    return machines.together(lambda: _code(program, lambda: _run(settings, stop), first=first), say)


def _run(settings: Settings, stop: signals.Stop) -> int:
    """Run the method with these settings, write its results into the workdir, and print them.

    The results of a finished run are printed again, and an unfinished run continues. Mistakes are
    found before JAX starts a backend.

    Returns:
      The exit code.
    """
    folder = settings.workdir or naming.default_workdir(settings)
    values, how = naming.flat(settings), settings.keeping
    number = machines.number(settings.machines)
    first = number == 0
    voice = progress.Voice(Console(stderr=True, quiet=not first))

    def finished() -> Results | None:
        return workdir.finished(folder, values, fresh=how.fresh)

    if (results := machines.agreed(settings.machines, finished)) is not None:
        if not first:
            return OK
        of = results.get("dataset")
        voice.say(f"this run is finished; its results, on {of} (not read again), from {folder}:")
        code = _show(results, settings, folder, voice)
        if not (folder / "report.html").is_file():
            write.after_run(folder, voice.say)
        if lost := workdir.without_model(folder):
            voice.say(lost)
        return code
    # Another run is found at once, and what is refused makes no folder.
    if first and folder.exists():
        with lock.locked(folder, how.only_subnet):
            pass
    startup.check_environment()
    dataset = load(settings, voice)
    voice.say("starting JAX")
    for name in startup.start_jax(settings.subnets):
        voice.say(f"note: {name} is set, and is not followed here")
    from experiments.method import factory

    factory.check_own(settings, dataset)
    if how.dry_run:
        return _dry_run(settings, dataset, folder, voice, stop)
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(lock.locked(folder, how.only_subnet))
        machines.agreed(settings.machines, lambda: None)  # nobody goes on without the lock
        if how.fresh:
            workdir.clear(folder)
            machines.agreed(settings.machines, lambda: None)  # nor writes what another clears
        part = "" if first else f"-process-{number}"
        if how.only_subnet is not None:
            part = f"-subnet-{how.only_subnet}"
        metrics = stack.enter_context(workdir.opened(folder, values, voice.say, part))
        tracker = how.tracker if first else "none"
        tracked = trackers.listening(tracker, folder, values, voice.say)
        metrics.listeners += [voice.entry, *stack.enter_context(tracked)]
        return _train(settings, dataset, folder, voice, metrics, stop)


def _dry_run(
    settings: Settings,
    dataset: data.Dataset,
    folder: Path,
    voice: progress.Voice,
    stop: signals.Stop,
) -> int:
    """Print the plan of a run; leave nothing in its folder."""
    from experiments.method import factory, plan
    from experiments.run import checkpointing

    metrics = workdir.Metrics(folder / workdir.METRICS, io.BytesIO(), voice.say)
    keeper = checkpointing.Keeper(folder, settings.keeping, {}, {}, voice, metrics, stop)
    voice.say("dry run: compiling both networks, and measuring a few steps of each")
    for line in plan.dry_run(factory.setup(settings, dataset, keeper)):
        if machines.number(settings.machines) == 0:
            print(line)
    return OK


def load(settings: Settings, voice: progress.Voice) -> data.Dataset:
    """Return the data set, with as many of its training images as the settings ask for.

    Raises:
      DataError: it cannot be had.
      Ended: it does not fit the other settings.
    """
    chosen = settings.data
    dataset = data.load(
        chosen.dataset,
        data_dir=chosen.data_dir,
        train_size=chosen.train_size,
        seed=settings.seed,
        image_size=chosen.image_size,
        augment=chosen.augment,
        notify=voice.say,
    )
    _refuse(validate.data_problems(settings, dataset.train.images.shape))
    if note := validate.too_few_steps(settings, len(dataset.train.labels)):
        voice.say(note)
    return dataset


def _train(
    settings: Settings,
    dataset: data.Dataset,
    folder: Path,
    voice: progress.Voice,
    metrics: workdir.Metrics,
    stop: signals.Stop,
) -> int:
    """Do the part that needs JAX's devices."""
    import jax

    from experiments.method import pipeline
    from experiments.method.divergence import Diverged
    from experiments.run import checkpointing

    how, values = settings.keeping, naming.flat(settings)
    fingerprint = checkpointing.fingerprint(dataset)
    if settings.machines.several:
        _refuse_other_run(settings, fingerprint)
    keeper = checkpointing.Keeper(folder, how, values, fingerprint, voice, metrics, stop)
    try:
        if how.only_subnet is not None:
            kept = pipeline.run_one(settings, dataset, keeper, how.only_subnet)
            voice.say(f"sub-network {how.only_subnet} is trained" + (COLLECT if kept else NO_ROOM))
            return OK if kept else LOST
        results = workdir.plain(pipeline.run(settings, dataset, keeper))
        if machines.number(settings.machines):
            return OK
    except Diverged as error:
        raise Ended(DIVERGED, f"diverged: {error}") from None
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        first, *_ = str(error).splitlines() or ["out of memory"]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in first:
            raise
        raise Ended(
            BAD_INPUT,
            "error: the memory does not suffice: take a smaller --width or --batch-size, or fewer "
            f"images (--train-size): {first[:200]}",
        ) from None
    code = OK
    try:
        workdir.finish(folder, results, naming.flat(settings))
        voice.say(f"results: {folder / workdir.RESULTS}")
    except OSError as error:
        voice.say(f"the results cannot be written to {folder}: {error.strerror}")
        code = LOST
    code = max(code, _show(results, settings, folder, voice))
    write.after_run(folder, voice.say)
    return code


def _refuse_other_run(settings: Settings, fingerprint: Mapping[str, Any]) -> None:
    """Refuse to train with processes that have other settings, data or versions."""
    from dcjax import method

    compared = {name: v for name, v in naming.flat(settings).items() if name not in naming.PLACES}
    compared |= {f"version of {name}": said for name, said in method.versions().items()}
    compared["data"] = dict(fingerprint)
    if found := machines.differences(settings.machines, compared):
        raise Ended(
            BAD_INPUT,
            "error: all processes need the same settings, data and versions:\n  "
            + "\n  ".join(found),
        )


def _show(results: Results, settings: Settings, folder: Path, voice: progress.Voice) -> int:
    """Print the results; return the exit code."""
    if sys.stdout is None:
        voice.say(f"the results cannot be printed: stdout is closed; they are in {folder}")
        return LOST
    try:
        summary.show(results, Console(), asked=settings.data.dataset)
        sys.stdout.flush()
    except OSError as error:  # a full disk, or a pipe that nobody reads any longer
        voice.say(f"the results cannot be printed: {error.strerror}; they are in {folder}")
        _drop_stdout()
        return LOST
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file = folder / workdir.RESULTS
        raise workdir.WorkdirError(
            f"{file} is not of this command: {error!r}. Delete that file: the same command writes "
            "it again from the checkpoints"
        ) from error
    return OK


def _drop_stdout() -> None:
    """Let stdout lead nowhere: Python flushes it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(problems: Iterable[str]) -> None:
    if found := "\n  ".join(problems):
        raise Ended(BAD_INPUT, f"error: {found}")
