"""Takes what no folder shows: deep folders, unlinked files, memory files; as its option says."""

import os
import time

import numpy as np

BLOCK = bytes(8 << 20)


def deep(folder):
    place = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 200, dir_fd=place)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    file = os.open("big", os.O_CREAT | os.O_WRONLY, dir_fd=place)
    for _ in range(3):
        os.write(file, BLOCK)


def unlinked(folder):
    held = []
    for _ in range(20):
        held.append(os.open(folder / "x", os.O_RDWR | os.O_CREAT | os.O_EXCL))
        os.unlink(folder / "x")
        os.write(held[-1], BLOCK)
    return held


def memory(folder):
    held = os.memfd_create("x")
    for _ in range(90):
        os.write(held, BLOCK)
    return held


class G:
    def setup(self, task):
        self.task = task

    def generate(self, labels, seed):
        if labels[0] == 2:
            self.held = globals()[self.task.options["what"]](self.task.working_dir)
            print("hoarded", flush=True)
            time.sleep(self.task.options["rest"])
        return np.full((len(labels), 3, 8, 8), 7, np.uint8)
