"""Crashes, and leaves a child that holds the frame pipe open without a word."""

import ctypes
import os
import time

import numpy as np


class G:
    def setup(self, task):
        pass

    def generate(self, labels, seed):
        if labels[0] == 2:
            if os.fork() == 0:
                ctypes.CDLL(None).prctl(15, b"cheat-holds", 0, 0, 0)
                time.sleep(600)
            time.sleep(0.5)
            os.kill(os.getpid(), 9)
            os._exit(1)  # process 1 of a container cannot kill itself
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
