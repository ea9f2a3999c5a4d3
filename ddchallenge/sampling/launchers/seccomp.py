"""Which system calls a worker has no use for: the network, and others' processes and memory.

Many calls take the number of a process and ask only that its user be the same: by prlimit(2) a
worker could have its supervisor killed. Others keep things beyond the end of a run, which a next
run would find. Signals are Landlock's to stop (kill, pidfd_send_signal), and so it is with
pidfd_open, which asyncio tries. Standard library only. Sources: seccomp(2), the kernel's
``arch/x86/entry/syscalls/syscall_64.tbl`` and ``include/uapi/asm-generic/unistd.h``.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Final

__all__ = ["program", "seccomp_known"]

# machine: AUDIT_ARCH and the column below
_MACHINES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32_BIT: Final = 0x40000000

# What has no use here: number on x86_64, on aarch64.
_REFUSED: Final = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "setns": (308, 268),
    # System V and POSIX IPC, by number too: who knows it needs no "get"
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
}  # fmt: skip
# As on a kernel without them: io_uring makes sockets past a filter, and the flags of clone3 cannot
# be read here; libraries then take clone.
_UNKNOWN: Final = {"io_uring_setup": (425, 425), "clone3": (435, 435)}
# Their first argument is a process or thread, 0 for the caller.
_OWN_ONLY: Final = {
    "prlimit64": (302, 261), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
}  # fmt: skip
# Of another thread it seems to be done and is not: OpenMP places its threads so as it makes them.
_SETAFFINITY: Final = (203, 122)
# First a kind, then whom; and the kind "all of a user's processes".
_PRIORITIES: Final = (((141, 140), 2), ((251, 30), 3))  # setpriority, ioprio_set
_NAMESPACES: Final = ((272, 97), (56, 220))  # unshare, clone: flags first
_CLONE_NEWUSER: Final = 0x10000000
_SOCKET: Final = (41, 198)
_AF_UNIX, _AF_NETLINK = 1, 16

_KILL, _ERRNO = 0x80000000, 0x00050000
_EPERM, _EACCES, _ENOSYS = 1, 13, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# struct seccomp_data; of arguments the lower half, all of an int
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24

_Line = tuple[int, int, int, int]  # operation, lines to skip if so, if not, operand
_ALLOWED: Final[_Line] = (_RETURN, 0, 0, 0x7FFF0000)


def seccomp_known() -> bool:
    """Whether this machine's system calls are known here."""
    return sys.platform == "linux" and os.uname().machine in _MACHINES


def program() -> bytes:
    """The filter, for seccomp(2): lines of eight bytes. Needs :func:`seccomp_known`."""
    architecture, column = _MACHINES[os.uname().machine]
    lines: list[_Line] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        _failed(_ENOSYS),
    ]
    for numbers in _REFUSED.values():
        lines += _on(numbers[column], _failed(_EPERM))
    for numbers in _UNKNOWN.values():
        lines += _on(numbers[column], _failed(_ENOSYS))
    for numbers in _OWN_ONLY.values():
        lines += _on(numbers[column], *_unless_zero(_FIRST, _failed(_EPERM)))
    lines += _on(_SETAFFINITY[column], *_unless_zero(_FIRST, _failed(0)))
    for numbers, of_a_user in _PRIORITIES:
        lines += _on(
            numbers[column],
            (_LOAD, 0, 0, _FIRST),
            (_EQUAL, 0, 1, of_a_user),
            _failed(_EPERM),
            *_unless_zero(_SECOND, _failed(_EPERM)),
        )
    for numbers in _NAMESPACES:
        flagged: _Line = (_ANY_BIT, 0, 1, _CLONE_NEWUSER)
        lines += _on(numbers[column], (_LOAD, 0, 0, _FIRST), flagged, _failed(_EPERM), _ALLOWED)
    lines += _on(
        _SOCKET[column],
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 2, 0, _AF_UNIX),
        (_EQUAL, 1, 0, _AF_NETLINK),
        _failed(_EACCES),
        _ALLOWED,
    )
    lines.append(_ALLOWED)
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _failed(error: int) -> _Line:
    return (_RETURN, 0, 0, _ERRNO | error)


def _on(number: int, *lines: _Line) -> list[_Line]:
    """``lines`` for that call, which must return; another goes on after them."""
    return [(_EQUAL, 0, len(lines), number), *lines]


def _unless_zero(argument: int, line: _Line) -> list[_Line]:
    return [(_LOAD, 0, 0, argument), (_EQUAL, 1, 0, 0), line, _ALLOWED]
