"""Signals that stop a run: SIGINT (Ctrl-C), SIGTERM (a cluster wants its machine back)."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was asked to stop. Not an `Exception`, so that nothing catches it by accident."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """The handler of the signals.

    While `patient` is set, the first signal is only noted in `asked`, so that the step can end and
    be saved. Otherwise, and at the second signal, `Stopped` is raised where the program is.
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
        """Be patient while the context lasts."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Handle the signals while the context lasts."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
