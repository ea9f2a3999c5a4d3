"""Start a worker as a process group of its own, and stop it so that nothing of it is left."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

__all__ = ["ENDING_SECONDS", "WorkerProcess", "die_with_parent"]

GRACE_SECONDS: Final = 1.0
ENDING_SECONDS: Final = 0.2
KILL_SECONDS: Final = 0.8  # the promise is two seconds, the polite one included
PIPE_BYTES: Final = 1 << 20

# prctl(2)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
# fcntl(2); the fcntl module has the name only on Linux
_F_SETPIPE_SZ: Final = 1031

# A submission is told where its own training images are, never where the data sets lie.
_HIDDEN_VARIABLES: Final = ("DDCHALLENGE_DATA", "DDCHALLENGE_CACHE")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class WorkerProcess:
    """A running worker: ``requests`` to write, ``frames`` and ``output`` to read (non-blocking).

    Children this process already has, and those ``spare`` names later, are not the run's.
    """

    def __init__(self, working_dir: Path, spare: Callable[[], Collection[int]] = tuple) -> None:
        import psutil

        # Orphans of the submission become our children, where stop() finds them.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._ours = frozenset(child.pid for child in psutil.Process().children())
        self._spare = spare
        environment = {k: v for k, v in os.environ.items() if k not in _HIDDEN_VARIABLES}
        environment |= {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "NO_ALBUMENTATIONS_UPDATE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ddchallenge.sampling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=working_dir,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:  # pragma: no cover - asked for above
            raise RuntimeError("the worker's pipes were not made")
        self._files = (stdin, stdout, stderr)
        self.requests, self.frames, self.output = (file.fileno() for file in self._files)
        _enlarge_pipe(self.frames)
        # A worker that never reads must not block us.
        os.set_blocking(self.requests, False)
        os.set_blocking(self.frames, False)
        os.set_blocking(self.output, False)

    @property
    def pid(self) -> int:
        """The worker's process id, which is also that of its group."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether the worker itself is no more, whatever it has left behind."""
        return self._process.poll() is not None

    def ending(self) -> str:
        """How the process ended, for people; waits a moment for it to be known."""
        try:
            status = self._process.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its frame pipe and went on running"
        if status < 0:
            try:
                name = signal.Signals(-status).name
            except ValueError:
                name = f"signal {-status}"
            memory = " (out of memory?)" if name == "SIGKILL" else ""
            return f"was killed by {name}{memory}"
        return f"ended with exit status {status}"

    def stop(self, meanwhile: Callable[[], None], *, grace: float = GRACE_SECONDS) -> set[int]:
        """Stop every process of the run: a polite signal, ``grace`` seconds, then kill.

        ``meanwhile`` is called while waiting, so that pipes can be drained. Returns the processes
        that are left: none, unless the kernel itself holds one.
        """
        if self.survivors():
            self._signal_group(signal.SIGTERM)
        polite_until = time.monotonic() + grace
        while time.monotonic() < polite_until and self.survivors():
            meanwhile()
            time.sleep(0.01)
        kill_until = time.monotonic() + KILL_SECONDS
        while survivors := self.survivors():
            if time.monotonic() > kill_until:
                return survivors
            self._signal_group(signal.SIGKILL)
            for pid in survivors:
                _signal(pid, signal.SIGKILL)
            meanwhile()
            time.sleep(0.005)
        self._process.wait()
        return set()

    def close(self) -> None:
        """Close our ends of the pipes."""
        for file in self._files:
            file.close()

    def survivors(self) -> set[int]:
        """The living processes of the run: the worker, its group, and all their descendants.

        On Linux orphans come to us (PR_SET_CHILD_SUBREAPER), so a double fork or a new session
        does not hide a process from this; elsewhere it can.
        """
        import psutil

        spared = self._ours | set(self._spare())
        alive: set[int] = set()
        me = psutil.Process()
        for child in me.children():
            if child.pid in spared:
                continue
            try:
                family = [child, *child.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in family:
                try:
                    if process.status() != psutil.STATUS_ZOMBIE:
                        alive.add(process.pid)
                    elif process.ppid() == me.pid and process.pid != self._process.pid:
                        os.waitpid(process.pid, os.WNOHANG)  # an orphan that came to us
                except (psutil.NoSuchProcess, ChildProcessError):
                    continue
        self._process.poll()
        return alive

    def _signal_group(self, number: signal.Signals) -> None:
        # The group outlives its leader for as long as one member lives, so its number is ours.
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _enlarge_pipe(descriptor: int) -> None:
    # Fewer, larger reads; the kernel may refuse, and then it is only slower.
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass
