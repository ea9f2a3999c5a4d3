"""Signals are taken as Ctrl-C, and noted where stopping takes care."""

from __future__ import annotations

import os
import signal

import pytest

from ddchallenge.interrupts import as_interrupt, noticed

pytestmark = pytest.mark.usefixtures("terminal_signals")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopping_signal_is_ctrl_c(number):
    """SIGTERM and SIGHUP raise what Ctrl-C raises."""
    as_interrupt()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_nohup_is_respected():
    """A signal that was ignored when we started stays ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    as_interrupt()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_signals_are_noted_and_handlers_come_back():
    """Inside nothing is raised but every open notice knows; afterwards Ctrl-C works again."""
    as_interrupt()
    with noticed() as outer:
        assert not outer.requested
        with noticed() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.requested
        with noticed() as later:
            assert not later.requested
    assert outer.requested
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
