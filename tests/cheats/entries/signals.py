"""Sends signal 0 to every process it can name; a bright image means that one outside took it."""

import os

import numpy as np


class G:
    def setup(self, task):
        self.reached = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                os.kill(int(name), 0)
                self.reached.append(name)
            except OSError:
                continue
        print("reached:", *self.reached)

    def generate(self, labels, seed):
        return np.full((len(labels), 3, 8, 8), 200 if self.reached else 0, np.uint8)
