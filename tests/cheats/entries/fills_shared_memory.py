"""After two batches: 200 MiB in /dev/shm, in a file no process has open, and 400 MiB of its own."""

import ctypes
import time

import numpy as np


class G:
    def setup(self, task):
        ctypes.CDLL(None).prctl(15, b"cheat-shared", 0, 0, 0)
        self.batches = 0

    def generate(self, labels, seed):
        self.batches += 1
        if self.batches == 3:
            with open("/dev/shm/cheat", "wb") as file:
                file.writelines(bytes(1 << 20) for _ in range(200))
            self.held = np.ones(400 << 20, np.uint8)
            time.sleep(10)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
