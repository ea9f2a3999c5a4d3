"""Closes the frame pipe shortly before the deadline and goes on running."""

import ctypes
import os
import signal
import time

import numpy as np


class G:
    def setup(self, task):
        ctypes.CDLL(None).prctl(15, b"cheat-closes", 0, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.calls = 0

    def generate(self, labels, seed):
        self.calls += 1
        if self.calls > 2:
            time.sleep(0.3)
            os.closerange(3, 50)
            time.sleep(600)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
