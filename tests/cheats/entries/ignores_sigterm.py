"""Sleeps past the deadline and does not want to hear of its end."""

import ctypes
import signal
import time

import numpy as np


class G:
    def setup(self, task):
        ctypes.CDLL(None).prctl(15, b"cheat-ignores", 0, 0, 0)
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        self.calls = 0

    def generate(self, labels, seed):
        self.calls += 1
        until = time.monotonic() + (600 if self.calls > 2 else 0)
        while time.monotonic() < until:
            time.sleep(1)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
