"""Ctrl-C and SIGTERM, heard while something is carried out that is worth ending in good order."""

import signal
import threading
from types import FrameType
from typing import Any

from grit_lite import processes


class StopRequest:
    """The first Ctrl-C or SIGTERM asks for a stop after the step; a second one interrupts at once.

    Attributes:
        signal_number: the first signal received, or None.
        at_once: whether the first one interrupts as well.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses to set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_asked(self) -> bool:
        """Whether any process of the run has received a signal; all of them know of it from then on."""
        if number := max(processes.gathered([self.signal_number or 0])):
            self.signal_number = number
        return bool(number)

    def interrupt_if_asked(self) -> None:
        """What has no steps to finish stops here."""
        if self.signal_number is not None:
            raise KeyboardInterrupt

    def interrupt_from_here_on(self) -> None:
        """What follows is done again if it is interrupted, so that a signal need not wait for it."""
        self.at_once = True
        self.interrupt_if_asked()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_first, self.signal_number = self.signal_number is None, self.signal_number or number
        if self.at_once or not is_first:
            raise KeyboardInterrupt
