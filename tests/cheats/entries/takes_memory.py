"""Takes memory, in two processes, up to 3 GiB, should nobody stop it."""

import ctypes
import os
import time

import numpy as np


class G:
    def setup(self, task):
        pass

    def generate(self, labels, seed):
        if labels[0] == 2:
            os.fork()
            ctypes.CDLL(None).prctl(15, b"cheat-memory", 0, 0, 0)
            held = []
            for _ in range(96):
                held.append(np.ones(16 << 20, np.uint8))
                time.sleep(0.03)
            time.sleep(600)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
