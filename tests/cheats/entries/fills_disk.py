"""Fills its folder with files, up to 512 MiB, should nobody stop it."""

import ctypes
import time

import numpy as np


class G:
    def setup(self, task):
        self.place = task.working_dir

    def generate(self, labels, seed):
        if labels[0] == 2:
            ctypes.CDLL(None).prctl(15, b"cheat-disk", 0, 0, 0)
            for number in range(128):
                folder = self.place / f"deep{number % 7}"
                folder.mkdir(exist_ok=True)
                (folder / str(number)).write_bytes(bytes(4 << 20))
                time.sleep(0.03)
            time.sleep(600)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
