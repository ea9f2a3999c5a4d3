"""Signals that ask a run to stop: taken as Ctrl-C, and noticed where stopping takes care."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["Notice", "as_interrupt", "noticed"]

# A scheduler's time limit and a closed terminal deserve the same care as Ctrl-C.
_STOPPING: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Notice:
    """Whether somebody has asked to stop."""

    requested = False


_notices: Final[list[Notice]] = []


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
def noticed() -> Iterator[Notice]:
    """Inside, those signals and Ctrl-C raise nothing: they are noted, in every open notice.

    Whoever opened it looks at ``requested`` where stopping loses nothing, and acts on it at the
    latest after the block: a signal must not get lost.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice  # handlers belong to the main thread, and are only run there
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_STOPPING)}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    _notices.append(notice)
    for number in before:
        signal.signal(number, _note)
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _notices.remove(notice)


def _note(number: int, frame: FrameType | None) -> None:
    for notice in _notices:
        notice.requested = True
