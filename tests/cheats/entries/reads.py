"""Reads every path it is told of, in several ways; a bright image means that one could be read."""

import os

import numpy as np


def ways(path):
    yield path
    # Past the walls: another process's view of the file system.
    for pid in (1, os.getppid(), "self"):
        yield f"/proc/{pid}/root{path}"
    link = os.path.join(os.environ["TMPDIR"], f"link{abs(hash(path))}")
    try:
        os.symlink(path, link)
        yield link
        os.link(path, link + "-hard")
        yield link + "-hard"
    except OSError as error:
        print(f"link to {path}: {error}")


class G:
    def setup(self, task):
        self.read = 0
        for path in task.options["paths"].split(":"):
            for way in ways(path):
                try:
                    with open(way, "rb") as file:
                        if file.read(16):
                            self.read += 1
                            print(f"{way}: read")
                except OSError as error:
                    print(f"{way}: {error}")

    def generate(self, labels, seed):
        return np.full((len(labels), 3, 8, 8), 200 if self.read else 0, np.uint8)
