"""Signals: noted during a step, raised elsewhere, and at once the second time."""

import signal

import pytest

from experiments.run import signals as stop


@pytest.fixture(autouse=True)
def default_hangup():
    """The tests may themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_elsewhere_it_stops_where_it_is():
    with pytest.raises(stop.Stopped, match="SIGTERM"), stop.listening():
        signal.raise_signal(signal.SIGTERM)


def test_during_a_step_it_is_noted_and_the_second_stops():
    with stop.listening() as asked:
        with asked.after_this_step():
            signal.raise_signal(signal.SIGINT)
            assert asked.asked == signal.SIGINT
            with pytest.raises(stop.Stopped) as raised:
                signal.raise_signal(signal.SIGTERM)
        assert raised.value.number == signal.SIGTERM
        assert not asked.patient


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_what_batch_systems_send_stops_with_its_number(name):
    number = signal.Signals[name]
    with pytest.raises(stop.Stopped, match=name) as raised, stop.listening():
        signal.raise_signal(number)
    assert raised.value.number == number


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    try:
        with stop.listening() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked.asked is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_except_exception_keeps_it_from_stopping():
    assert not issubclass(stop.Stopped, Exception)


def test_what_was_there_before_is_there_again():
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    with stop.listening():
        assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in stop.SIGNALS} == before
