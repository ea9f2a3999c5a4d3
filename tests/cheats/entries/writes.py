"""Writes, renames, deletes and links outside its folder; a bright image means that it could."""

import os
import shutil

import numpy as np


def tries(victim, place):
    folder = os.path.dirname(victim)
    mine = os.path.join(place, "mine")

    def make():
        open(os.path.join(folder, "planted"), "w").close()

    def change():
        open(victim, "a").close()

    def cut():
        os.truncate(victim, 0)

    def remove():
        os.remove(victim)

    def rename():
        shutil.copy("/proc/self/status", mine)
        os.rename(mine, os.path.join(folder, "planted"))

    def through_a_link():
        os.symlink(folder, os.path.join(place, "way-out"))
        open(os.path.join(place, "way-out", "planted"), "w").close()

    def folder_():
        os.mkdir(os.path.join(folder, "planted"))

    def device():
        os.mknod(os.path.join(place, "disk"), 0o660 | 0o060000, os.makedev(259, 0))

    return [make, change, cut, remove, rename, through_a_link, folder_, device]


class G:
    def setup(self, task):
        self.done = 0
        place = str(task.working_dir)
        with open(os.path.join(place, "allowed"), "w") as file:
            file.write("here it may")
        for victim in task.options["victims"].split(":"):
            for way in tries(victim, place):
                try:
                    way()
                    self.done += 1
                    print(f"{way.__name__} {victim}: done")
                except OSError as error:
                    print(f"{way.__name__} {victim}: {error}")

    def generate(self, labels, seed):
        return np.full((len(labels), 3, 8, 8), 200 if self.done else 0, np.uint8)
