"""Signals that ask a command to end: it finishes its step or batch, saves, and leaves."""

import os
import signal
from types import FrameType
from typing import Self

from vlmkit.distributed import Ranks

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopSignal:
    """While entered, the first signal is remembered; a second Ctrl-C interrupts at once."""

    def __init__(self, unit: str = "step") -> None:
        self._unit = unit  # of work, which is finished first
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reached_any(self, ranks: Ranks) -> bool:
        """Whether a signal reached any process: all processes get the same answer, so they leave at the same step."""
        return ranks.sum(float(self.received is not None))[0] > 0

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # Straight to the file descriptor: a handler may interrupt a print and must not print itself.
        os.write(2, f"{self.received.name}: leaving after this {self._unit}; Ctrl-C again ends at once\n".encode())
