"""The commands and the code in README and docs are those that exist.

Flags are read by each program's own parser, which then stops. `.ci/run` itself runs the notebooks,
the tests and the tools, and the doctests run all other code.
"""

import argparse
import dataclasses
import functools
import inspect
import itertools
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tyro

import dcjax
from experiments import cli
from experiments.benchmark import __main__ as benchmark
from experiments.settings.flags import Settings
from experiments.study import __main__ as study

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
PROGRAMS = ("python", "pip", "bash", "dcjax", "ruff", "pyright", "sphinx-build", "pre-commit")
# The options of commit 4ffa14d that docs/results.md names with it.
GONE = {
    "--widen",
    "--off-diagonal-rate",
    "--off-diagonal-scale",
    "--freeze-epochs",
    "--shard-data",
}


def code(page: Path) -> Iterator[str]:
    """Yield a page's code that is not Python: lines of blocks, and code within text."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?!python|\{)\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^    (\S.*)", text, re.MULTILINE)
    yield from (" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text))


def commands() -> Iterator[tuple[str, str]]:
    """Yield the commands of all pages, each with its page."""
    for page in PAGES:
        for line in code(page):
            for command in line.split("&&"):
                words = command.strip().removeprefix("$ ")
                if words.startswith(tuple(f"{program} " for program in PROGRAMS)):
                    yield page.name, words.replace("…", "").replace("SHELL", "bash").strip()


COMMANDS = sorted(set(commands()))


class Parsed(Exception):
    """The program has read its flags."""


@pytest.fixture
def stopping(monkeypatch):
    """Programs stop when they have read and checked their flags."""

    def stopping_after(read):
        def read_and_stop(*args, **kwargs):
            read(*args, **kwargs)
            raise Parsed

        return read_and_stop

    def read_and_stop(program, **kwargs):
        if inspect.isfunction(program):
            program = functools.wraps(program)(lambda *args, **kwargs: None)
        settings = read(program, **kwargs)
        if sys._getframe(1).f_globals["__name__"] != cli.__name__:  # which checks more
            raise Parsed
        return settings

    read = tyro.cli
    monkeypatch.setattr(tyro, "cli", read_and_stop)
    monkeypatch.setattr(cli, "parse", stopping_after(cli.parse))
    of_examples = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopping_after(of_examples))


def run(module, args, monkeypatch):
    """Do what `python -m module args` does."""
    monkeypatch.setattr(sys, "argv", [module, *args])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # another test has imported the module
        runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_the_documentation_is_one(page, command, stopping, monkeypatch):
    program, *args = shlex.split(command)
    if command in ("dcjax predict", "dcjax report"):  # named in a sentence, without a folder
        args.append("--help")
    if program == "dcjax":
        program, args = "python", ["-m", "dcjax", *args]
    if program == "python" and args[:1] == ["-m"]:
        module, *args = args[1:]
        if module == "pytest":
            assert all((ROOT / arg).exists() for arg in args if arg.startswith("tests/"))
        else:
            with pytest.raises((Parsed, SystemExit)) as ended:
                run(module, args, monkeypatch)
            assert not getattr(ended.value, "code", 0)  # of --help
    elif program in ("python", "bash"):
        assert (ROOT / args[0]).exists()
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        extras = {word for arg in args for word in re.findall(r"\[(.*)\]", arg)}
        assert extras <= set(project["project"]["optional-dependencies"])
        groups = {group for flag, group in itertools.pairwise(args) if flag == "--group"}
        assert groups <= set(project["dependency-groups"])


def test_a_command_with_an_unknown_flag_is_found(stopping, monkeypatch, capsys):
    for module in ("experiments.cifar10", "experiments.study"):
        with pytest.raises(SystemExit) as ended:
            run(module, ["--no-such-flag", "4"], monkeypatch)
        assert ended.value.code == 2
        assert "--no-such-flag" in capsys.readouterr().err


def flags_of(settings: type) -> Iterator[str]:
    """Yield the flags that tyro makes of a dataclass and the dataclasses within."""
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(field.type):
            yield from flags_of(field.type)
        name = field.name.replace("_", "-")
        yield from (f"--{name}", f"--no-{name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_named_in_text_exist(page):
    named = {word for line in code(page) for word in re.findall(r"^--[\w-]+", line)}
    programs = Settings, study.Options, benchmark.Options
    known = {flag for program in programs for flag in flags_of(program)} | GONE
    assert named <= known | {"--help", "--help-all"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_without_prompts_runs(page, monkeypatch):
    """On a few images, which the text leaves to the reader."""
    monkeypatch.setattr(
        dcjax, "transfer", functools.partial(dcjax.transfer, epochs=(1, 1), progress=False)
    )
    images, labels = np.zeros((16, 32, 32, 3), np.uint8), np.arange(16) % 10
    names = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for block in blocks:
        if ">>>" not in block:
            exec(compile(block, str(page), "exec"), names)
