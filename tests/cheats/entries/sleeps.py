"""Hands over two batches, then sleeps past the deadline, and would hand over a third."""

import ctypes
import time

import numpy as np


class G:
    def setup(self, task):
        ctypes.CDLL(None).prctl(15, b"cheat-sleeps", 0, 0, 0)
        self.calls = 0

    def generate(self, labels, seed):
        self.calls += 1
        if self.calls > 2:
            time.sleep(600)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
