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
