"""Signals that ask a run to stop: taken as Ctrl-C, and held off where stopping must be finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["as_interrupt", "held_off"]

# A scheduler's time limit and a closed terminal deserve the same care as Ctrl-C.
_STOPPING: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def as_interrupt() -> None:
    """From now on SIGTERM and SIGHUP raise :class:`KeyboardInterrupt` in the main thread.

    A signal that is ignored stays so: that is what ``nohup`` asks for.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


@contextmanager
def held_off() -> Iterator[None]:
    """Inside, those signals and Ctrl-C are ignored: for the seconds that must not be cut short."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers belong to the main thread, and are only run there
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_STOPPING)}
    for number in before:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
