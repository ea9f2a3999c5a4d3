"""Prints without end, to every descriptor that takes it but the frames, from two threads."""

import os
import sys
import threading

import numpy as np


class G:
    def setup(self, task):
        def flood(number):
            while True:
                os.write(number, b"spam " * 10_000)

        for number in (1, 2):
            threading.Thread(target=flood, args=(number,), daemon=True).start()

    def generate(self, labels, seed):
        print("spam " * 1000, flush=True)
        print("egg " * 1000, file=sys.stderr, flush=True)
        return np.full((len(labels), 3, 8, 8), 9, np.uint8)
