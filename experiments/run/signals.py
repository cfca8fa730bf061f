"""Ends before the end: SIGINT (Ctrl-C), SIGTERM (a cluster wants its machine back), divergence."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was asked to stop; no `except Exception` may keep it from doing so."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Diverged(Exception):
    """A sub-network's numbers are no numbers any more; the message says what can be done."""


class Stop:
    """What has been asked for.

    While `patient` is set the first signal is only noted, so that the step can be ended and saved;
    otherwise, and the second time, `Stopped` is raised where the program is.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.patient = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self.patient or self.asked is not None:
            raise Stopped(number)
        self.asked = number

    @contextlib.contextmanager
    def after_this_step(self) -> Iterator[None]:
        """Be patient within."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Note the signals while the context lasts."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
