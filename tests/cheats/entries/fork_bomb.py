"""Forks, and what it forked forks, and so on. Should nobody stop it, it stops after 15 seconds."""

import ctypes
import os
import signal
import time

import numpy as np


class G:
    def setup(self, task):
        pass

    def generate(self, labels, seed):
        if labels[0] == 2:
            ctypes.CDLL(None).prctl(15, b"cheat-bomb", 0, 0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            until = time.monotonic() + 15
            while time.monotonic() < until:
                try:
                    os.fork()
                except OSError:
                    pass
            os._exit(0)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
