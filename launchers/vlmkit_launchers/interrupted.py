"""Signals that interrupt a command that waits for its jobs, or that a job remembers."""

import signal
from collections.abc import Callable, Iterable, Iterator
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

    with handled(_heeded(), interrupt):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """A signal that comes while this is entered raises Interrupted when the block has ended."""
    with remembered(_heeded()) as received:
        yield
    if received:
        raise Interrupted(received[0])


@contextmanager
def remembered(numbers: Iterable[signal.Signals]) -> Iterator[list[signal.Signals]]:
    """Those of some signals that have come since this was entered; they do nothing else meanwhile."""
    received: list[signal.Signals] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    with handled(numbers, remember):
        yield received


def _heeded() -> list[signal.Signals]:
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def handled(numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While this is entered, a function gets some signals."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
