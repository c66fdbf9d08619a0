"""The first signal asks for a stop, the second one interrupts."""

import os
import signal

import pytest

from grit_lite.stopping import StopRequest


def test_the_first_signal_asks_and_the_second_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs begin with it ignored
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_where_nothing_is_lost_the_first_signal_interrupts_and_so_does_one_that_has_come():
    with StopRequest() as stop:
        stop.interrupt_from_here_on()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.interrupt_from_here_on()
