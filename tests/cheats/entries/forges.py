"""Hands over one honest batch, then writes a frame of its own making."""

import os
import struct
import time

import numpy as np


class G:
    def setup(self, task):
        self.frame = bytes.fromhex(task.options["frame"])

    def generate(self, labels, seed):
        if labels[0] == 0:
            return np.zeros((len(labels), 3, 8, 8), np.uint8)
        for number in range(3, 20):
            try:
                if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
                    os.write(number, self.frame)
            except OSError:
                pass
        time.sleep(600)
        return struct.pack("x")
