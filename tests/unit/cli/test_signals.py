from __future__ import annotations

import os
import signal
import threading

import pytest

from autoq.cli.signals import STOPPING, Interrupts


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(5)


def test_the_first_ctrl_c_waits_for_the_measurement_and_says_so() -> None:
    said: list[str] = []
    with Interrupts(lambda: True, said.append) as interrupts:
        assert not interrupts.should_stop()
        ctrl_c()
        assert interrupts.should_stop()
    assert said == [STOPPING]


def test_the_second_ctrl_c_stops_at_once() -> None:
    with Interrupts(lambda: True, lambda text: None):
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_with_nothing_to_wait_for_the_first_ctrl_c_stops_at_once() -> None:
    with Interrupts(lambda: False, lambda text: None) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
        assert not interrupts.should_stop()


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(lambda: True, lambda text: None):
        pass
    assert signal.getsignal(signal.SIGINT) is before
