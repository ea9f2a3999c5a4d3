"""Its grandchild answers the requests, in time and after, while the worker itself is no more."""

import ctypes
import os
import signal
import struct
import time

import numpy as np

HEADER = struct.Struct("<4sHHIIIIQ")


def ends():
    """The request pipe and the frame pipe among the open descriptors."""
    import fcntl

    found = {}
    for number in range(3, 20):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
                found[fcntl.fcntl(number, fcntl.F_GETFL) & 3] = number
        except OSError:
            continue
    return found[os.O_RDONLY], found[os.O_WRONLY]


class G:
    def setup(self, task):
        self.calls = 0

    def generate(self, labels, seed):
        self.calls += 1
        if self.calls == 3:
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    self.serve_for_ever(len(labels))
                os._exit(0)
            os._exit(0)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)

    def serve_for_ever(self, count):
        ctypes.CDLL(None).prctl(15, b"cheat-grandchil", 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        requests, frames = ends()
        index = 2
        while True:
            head = HEADER.pack(b"DDC1", 5, 3, index, count, 8, 8, count * 192)
            try:
                os.write(frames, head + bytes([7]) * (count * 192))
                raw = os.read(requests, HEADER.size + 16)
                index, count = HEADER.unpack(raw[: HEADER.size])[3:5]
            except (OSError, struct.error):
                pass
            time.sleep(0.02)
