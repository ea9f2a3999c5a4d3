"""Leaves word for the next run wherever that is not a file of its own; bright if it finds some."""

import ctypes
import os
import platform
from pathlib import Path

import numpy as np

WORD = "ddchallenge-cheat"
ADD_KEY, KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
USER_KEYRING, SEARCH = -4, 10


class G:
    def setup(self, task):
        libc = ctypes.CDLL(None, use_errno=True)
        self.found = []
        note = Path("/dev/shm", WORD)
        if note.exists():
            self.found.append("/dev/shm")
        try:
            note.write_text(WORD)
            print("left in /dev/shm")
        except OSError as error:
            print(error)
        for get, more in ((libc.shmget, (4096,)), (libc.semget, (1,)), (libc.msgget, ())):
            if get(0xDDC4EA7, *more, 0o600) >= 0:
                self.found.append(get.__name__)
            elif get(0xDDC4EA7, *more, 0o1600) >= 0:
                print("left by", get.__name__)
        queue = f"/{WORD}".encode()
        librt = libc if hasattr(libc, "mq_open") else ctypes.CDLL("librt.so.1")
        if librt.mq_open(queue, os.O_RDWR) >= 0:
            self.found.append("mq_open")
        elif librt.mq_open(queue, os.O_RDWR | os.O_CREAT, 0o600, None) >= 0:
            print("left by mq_open")
        word = WORD.encode()
        if libc.syscall(KEYCTL, SEARCH, USER_KEYRING, b"user", word, 0) >= 0:
            self.found.append("key")
        elif libc.syscall(ADD_KEY, b"user", word, word, len(word), USER_KEYRING) >= 0:
            print("left by add_key")
        print("found:", *self.found)

    def generate(self, labels, seed):
        return np.full((len(labels), 3, 8, 8), 200 if self.found else 0, np.uint8)
