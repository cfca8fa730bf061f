"""Signals that stop a run: Ctrl-C, a closed terminal, a batch system shortly before its end."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

# SIGUSR1, SIGUSR2 and SIGXCPU are warnings of batch systems: the time is nearly used up.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


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
    # `nohup` ignores SIGHUP, to let the program outlive its terminal.
    ignored = {n for n in SIGNALS if n.name == "SIGHUP" and signal.getsignal(n) == signal.SIG_IGN}
    heard = [number for number in SIGNALS if number not in ignored]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
