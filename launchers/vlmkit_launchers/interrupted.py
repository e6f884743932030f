"""Signals that interrupt a command that waits for its jobs."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SystemExit):
    """A signal came; who does not catch it ends the process with 128 + its number."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(128 + received)


@contextmanager
def interruptible() -> Iterator[None]:
    """While this is entered, a signal raises Interrupted, unless it was ignored before, as under nohup."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number))

    with _handled(interrupt):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """A signal that comes while this is entered raises Interrupted when the block has ended."""
    received: list[signal.Signals] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    with _handled(remember):
        yield
    if received:
        raise Interrupted(received[0])


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
