"""Numbers as people read them, with their units; lines that keep the two together."""

import math
import re
import textwrap


def counted(count: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "epoch"), counted(1_000, "image")
    ('1 epoch', '1,000 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage.

    >>> percent(0.5)
    '50.00 %'
    """
    return f"{100 * fraction:.2f} %"


def nats(loss: float | None) -> str:
    """Return a loss to four places; None stands for the NaN of a training that diverged.

    >>> nats(0.25), nats(None)
    ('0.2500', 'diverged')
    """
    return "diverged" if loss is None else f"{loss:.4f}"


def clock(seconds: float) -> str:
    """Return a duration: the one form of all durations that people read.

    >>> clock(0.0123), clock(8.84), clock(83), clock(7500)
    ('0.01 s', '8.8 s', '1m 23s', '2h 05m')
    """
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h {minutes:02d}m"


def unit_of(most: float) -> tuple[str, float]:
    """Return the unit for numbers of floating-point operations up to `most`, and its size.

    >>> unit_of(3.2e12), unit_of(0)
    (('TFLOP', 1000000000000.0), ('FLOP', 1.0))
    """
    power = min(int(math.log10(most) / 3), 6) if most >= 1 else 0
    return f"{['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}FLOP", 1000.0**power


def operations(count: float) -> str:
    """Return a number of floating-point operations with its unit.

    >>> operations(3.21e12), operations(98_765), operations(0)
    ('3.21 TFLOP', '98.8 kFLOP', '0 FLOP')
    """
    unit, size = unit_of(count)
    return f"{count / size:.3g} {unit}"


def wrapped(text: str, width: int) -> str:
    """Return a text in lines of at most this width; a number stays beside its unit.

    >>> print(wrapped("accuracy 12.50 % after 3.0 s", 15))
    accuracy
    12.50 % after
    3.0 s
    """
    joined = re.sub(r"(?<=\d) (?=%|s\b|[kMGTPE]?FLOP)", "\N{NO-BREAK SPACE}", text)
    return textwrap.fill(joined, width, break_long_words=False, break_on_hyphens=False).replace(
        "\N{NO-BREAK SPACE}", " "
    )
