"""Replaces every clock it can reach, sleeps, and claims that no time has passed."""

import sys
import time

import numpy as np

really_sleep = time.sleep


class G:
    def setup(self, task):
        for name in ("monotonic", "perf_counter", "time", "process_time"):
            setattr(time, name, lambda: 0.0)
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("ddchallenge"):
                module.time = time
                module.deadline = module.budget_seconds = 1e9

    def generate(self, labels, seed):
        really_sleep(0.25)
        assert time.monotonic() == 0.0
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
