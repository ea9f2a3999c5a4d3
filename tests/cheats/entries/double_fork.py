"""Leaves a grandchild behind in a session of its own, which ignores every signal it can."""

import ctypes
import os
import signal
import time

import numpy as np


class G:
    def setup(self, task):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                ctypes.CDLL(None).prctl(15, b"cheat-forks", 0, 0, 0)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                time.sleep(600)
            os._exit(0)

    def generate(self, labels, seed):
        time.sleep(0.3)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
