"""Signals that ask for a stop."""

from __future__ import annotations

import os
import signal
from threading import Thread

import pytest

from fuse_search import stop as module
from fuse_search.stop import SIGNALS, Stop


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_a_second_one_interrupts(monkeypatch, number):
    before, told, stop = signal.getsignal(number), [], Stop()
    with stop.listening(lambda: told.append(number)):
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop() and told == [number]
        other = next(each for each in SIGNALS if each != number)
        os.kill(os.getpid(), other)  # from the scheduler, at the same time
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        monkeypatch.setattr(module, "SAME", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), other)
    assert told == [number] and signal.getsignal(number) == before


def test_who_is_told_may_be_in_the_middle_of_another_print():
    def told() -> None:
        raise RuntimeError("reentrant call")

    stop = Stop()
    with stop.listening(told):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop()


def test_a_stop_that_is_wanted_already_is_told_all_the_same():
    told, stop = [], Stop()
    with stop.listening(lambda: told.append(True)):
        stop.want()
        os.kill(os.getpid(), signal.SIGTERM)
    assert told == [True]


def test_another_thread_takes_no_signals():
    heard = []

    def listen() -> None:
        with Stop().listening(lambda: None):
            heard.append(signal.getsignal(signal.SIGTERM))

    thread = Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [signal.getsignal(signal.SIGTERM)]


def test_what_may_be_broken_off_is_interrupted_by_the_first_signal():
    stop = Stop()
    with stop.listening(lambda: None), pytest.raises(KeyboardInterrupt), stop.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    ran = []
    with pytest.raises(KeyboardInterrupt), stop.at_once():  # it came before
        ran.append(True)
    assert not ran
