"""Bars on a terminal, lines elsewhere, nothing where it is to be quiet."""

import io
import sys

from rich.console import Console

from experiments.run import console as progress


def spoken(**options):
    console = Console(file=io.StringIO(), width=80, **options)
    voice = progress.voice(console)
    voice.say("before [1/2]")
    with voice.bar("phase", 3) as advance:
        advance(1)
        voice.say("within")
        advance(3)
    return console.file.getvalue()


def test_lines_only_without_a_terminal():
    assert spoken(force_terminal=False) == "before [1/2]\nwithin\n"


def test_a_bar_with_the_time_left_on_a_terminal():
    text = spoken(force_terminal=True)
    assert "0/3" in text
    assert "3/3" in text
    assert "0:00:00" in text
    assert "within" in text


def test_silence():
    assert spoken(force_terminal=True, quiet=True) == ""


def test_a_long_line_stays_one_line():
    console = Console(file=io.StringIO(), width=20, force_terminal=False)
    progress.voice(console).say("x " * 50)
    assert console.file.getvalue().count("\n") == 1


def test_force_color_draws_no_bar_into_a_file(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    voice = progress.voice(Console(stderr=True))
    with voice.bar("stage", 3) as advance:
        advance(3)
    assert "\x1b" not in stream.getvalue()


def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch):
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    progress.replace_unknown_characters()
    print("0.1 ≤ 0.2", flush=True)
    assert file.getvalue() == b"0.1 ? 0.2\n"
