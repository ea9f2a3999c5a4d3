"""What Linux lets any process give up for good: files, system calls, signals, capabilities.

Nothing here needs privileges, and nothing undoes it: it holds for a process and all it starts.
Imports the standard library only and reads no configuration: the guardian runs it before anything
else exists. Sources: landlock(7) and https://docs.kernel.org/userspace-api/landlock.html (system
calls 444 to 446 on every architecture), seccomp(2), capabilities(7), mount_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from typing import Final

__all__ = [
    "drop_capabilities",
    "filter_calls",
    "landlock_abi",
    "no_new_privileges",
    "prctl",
    "private_shared_memory",
    "restrict",
    "scope_signals",
    "shared_memory_can_be_private",
]

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1  # a flag of create_ruleset: only say which ABI this is
_PATH_BENEATH: Final = 1

# Rights, by the ABI that brought them: bit 13 refer (2), 14 truncate (3), 15 ioctl (5).
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
_FILE_RIGHTS: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_RIGHTS_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15}  # how many bits an ABI knows; later ones 16
_TCP: Final = 0b11  # bind, connect: ABI 4
_SCOPES: Final = 0b11  # abstract Unix sockets, signals: ABI 6
SCOPES_ABI: Final = 6
NETWORK_ABI: Final = 4

# prctl(2)
PR_SET_PDEATHSIG: Final = 1
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

# unshare(2), mount(2)
_NEWNS, _NEWIPC, _NEWUSER = 0x00020000, 0x08000000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 1 << 14, 1 << 18
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - made anew

# A root that owns nothing could not read a submission that belongs to somebody else.
_CAP_DAC_OVERRIDE: Final = 1
_CAP_HIGHEST: Final = 63

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _syscall(number: int, *arguments: object) -> int:
    if _libc is None:
        raise OSError(0, "not Linux")
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def prctl(option: int, value: int, third: object = 0) -> None:
    """prctl(2); nothing where there is none. Raises :class:`OSError`."""
    if _libc is not None and _libc.prctl(option, value, third, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def no_new_privileges() -> None:
    """No program started from here on gets more rights than this process has."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


# ----------------------------------------------------------------------------------------- Landlock


def landlock_abi() -> int | None:
    """Which version of Landlock this kernel offers, or None."""
    try:
        return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    except OSError:
        return None


def _ruleset(abi: int, files: int, network: int, scopes: int) -> int:
    size = 8 if abi < NETWORK_ABI else 16 if abi < SCOPES_ABI else 24
    attributes = struct.pack("=QQQ", files, network, scopes)[:size]
    return _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)


def scope_signals(abi: int) -> None:
    """From here on signals reach this process's own descendants only, ``kill(-1)`` included.

    Needs ABI 6. Raises :class:`OSError`.
    """
    ruleset = _ruleset(abi, 0, 0, _SCOPES)
    try:
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def restrict(abi: int, *, listed: Iterable[str], read: Iterable[str], write: Iterable[str]) -> None:
    """From here on, of all files, only these; no TCP; no signals to outside.

    Below ``listed`` folders names can be listed, below ``read`` files can be read and executed,
    below ``write`` everything can be done but making devices. Paths that are gone count for
    nothing. The network needs ABI 4, signals ABI 6. Raises :class:`OSError`.
    """
    known = (1 << _RIGHTS_BITS.get(abi, 16)) - 1
    everything = known & ~(MAKE_CHAR | MAKE_BLOCK)
    ruleset = _ruleset(
        abi,
        known,
        _TCP if abi >= NETWORK_ABI else 0,
        _SCOPES if abi >= SCOPES_ABI else 0,
    )
    try:
        for paths, rights in (
            (listed, READ_DIR),
            (read, EXECUTE | READ_FILE | READ_DIR),
            (write, everything),
        ):
            for path in paths:
                _allow(ruleset, path, rights & known)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        # A link is not followed: what it points to has a rule of its own, or shall have none.
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISLNK(mode):
            return
        if not stat.S_ISDIR(mode):
            rights &= _FILE_RIGHTS
        if rights:
            rule = struct.pack("=Qi", rights, descriptor)
            _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ seccomp


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def filter_calls(program: bytes) -> None:
    """Refuse system calls from here on, as a program for seccomp(2) has it, 8 bytes a line.

    Needs :func:`no_new_privileges`. Raises :class:`OSError`.
    """
    described = _Program(len(program) // 8, program)
    prctl(PR_SET_SECCOMP, 2, ctypes.byref(described))


# ------------------------------------------------------------------------------------ shared memory


def private_shared_memory(most_bytes: int) -> None:
    """From here on an empty /dev/shm and IPC objects of this process's own; gone when it is.

    It is a mount namespace of its own, made by root as root, by others in a user namespace where
    they are who they were. Raises :class:`OSError` where the kernel allows neither.
    """
    if _libc is None:
        raise OSError(0, "not Linux")
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_NEWNS | _NEWIPC | (_NEWUSER if user else 0)))
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - no pathlib
                file.write(text)
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    options = f"size={most_bytes},mode=1777".encode()
    flags = _MS_NOSUID | _MS_NODEV
    _checked(_libc.mount(b"tmpfs", SHARED_MEMORY.encode(), b"tmpfs", flags, options))


def _checked(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def shared_memory_can_be_private() -> bool:
    """Whether :func:`private_shared_memory` works here, tried in a process of its own."""
    if sys.platform != "linux":
        return False
    import subprocess  # not light, and the guardian needs it not

    done = subprocess.run(
        [sys.executable, "-S", "-E", "-s", __file__],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


# ------------------------------------------------------------------------------------- capabilities


def drop_capabilities() -> None:
    """Root's powers, but that of reading and writing the files of others, for good.

    Raises :class:`OSError`.
    """
    if _libc is None:
        return
    for capability in range(_CAP_HIGHEST + 1):
        if capability != _CAP_DAC_OVERRIDE:
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError:
                break  # not root, or past the last one
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    held = ctypes.create_string_buffer(24)
    if _libc.capget(header, held) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    effective, permitted = struct.unpack_from("=II", held.raw)
    kept = 1 << _CAP_DAC_OVERRIDE
    wanted = struct.pack("=IIIIII", effective & kept, permitted & kept, 0, 0, 0, 0)
    if _libc.capset(header, wanted) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    no_new_privileges()
    private_shared_memory(1 << 20)
