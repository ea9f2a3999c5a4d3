"""A worker as a process of this machine, in the box its kernel offers.

See :mod:`ddchallenge.sampling.launchers.guardian` for who starts and stops it, ``sandbox`` for
what is cut off, ``hiding`` for which files it sees, ``variables`` for its environment.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ddchallenge.generator import Submission
from ddchallenge.records import LauncherName, LaunchRecord, Limits
from ddchallenge.sampling.launchers import (
    ENDING_SECONDS,
    GRACE_SECONDS,
    KILL_SECONDS,
    Places,
    check_cpus,
    check_memory,
    default_limits,
    sandbox,
    seccomp,
)
from ddchallenge.sampling.launchers.hiding import hidden_paths, visible_paths
from ddchallenge.sampling.launchers.requirements import REQUIREMENTS
from ddchallenge.sampling.launchers.variables import SET, passed_variables, worker_environment

__all__ = ["ProcessLauncher", "WorkerProcess", "enlarge_pipe"]

PIPE_BYTES: Final = 1 << 20
MESSAGE_BYTES: Final = 4096
# Of KILL_SECONDS the guardian's; in the rest we kill by ourselves what it has not.
GUARDIAN_SECONDS: Final = 0.5
# A process may become our child while we look for our children, so we look more than once.
LOOKS: Final = 3
# fcntl(2); the fcntl module has the name only on Linux
_F_SETPIPE_SZ: Final = 1031


class ProcessLauncher:
    """Starts workers as processes; a :class:`~ddchallenge.sampling.launchers.Launcher`.

    ``hidden`` are folders no worker may read, beside the data sets' usual places. Raises
    :class:`RequestError` for more memory or processors than the machine has.
    """

    name: LauncherName = "process"

    def __init__(self, limits: Limits | None = None, hidden: tuple[Path, ...] = ()) -> None:
        self.limits = limits or default_limits()
        self._hidden = hidden
        self._landlock = sandbox.landlock_abi()
        self._seccomp = seccomp.seccomp_known()
        self._can_be_private = self._private = sandbox.shared_memory_can_be_private()
        check_memory(self.limits.memory_bytes)
        check_cpus(self.limits.cpus)

    def prepare(
        self, submission: Submission, device: str, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Say what this machine cannot do."""
        del device
        if (submission.folder / REQUIREMENTS).is_file():
            say(
                f"The {REQUIREMENTS} of {submission.name} is not installed here: it runs with this "
                "environment's packages. --launcher container installs it."
            )
        if self._landlock is None:
            say(
                "This kernel has no Landlock: the submission can read and write your files. "
                "For strangers' code use --launcher container."
            )

    def inside(self, places: Places) -> Places:
        """The same places, resolved: a process sees the machine as it is."""
        training = places.training_data
        return Places(
            submission=places.submission.resolve(),
            working_dir=places.working_dir.resolve(),
            training_data=training.resolve() if training else None,
            hidden=tuple(path.resolve() for path in places.hidden),
            kept=places.kept,
        )

    def start(self, places: Places, spare: Callable[[], Collection[int]] = tuple) -> WorkerProcess:
        """Start a guardian and below it the worker."""
        places = self.inside(places)
        self._private = self._can_be_private and not _in_shared_memory(places)
        environment = worker_environment(places.working_dir)
        Path(environment["TMPDIR"]).mkdir(exist_ok=True)
        worker = WorkerProcess(environment, spare)
        # While its interpreter starts we look which files it may see.
        worker.order(self._orders(places))
        return worker

    def _orders(self, places: Places) -> dict[str, Any]:
        cpus: list[int] = []
        if self.limits.cpus is not None and hasattr(os, "sched_getaffinity"):
            cpus = sorted(os.sched_getaffinity(0))[: math.ceil(self.limits.cpus)]
        paths = {}
        if self._landlock is not None:
            paths = visible_paths(
                places, hidden_paths(self._hidden, places), shared_memory=self._private
            )
        return {
            "command": [sys.executable, "-P", "-m", "ddchallenge.sampling.worker"],
            "folder": str(places.working_dir),
            "cpus": cpus,
            "limits": self._resource_limits(),
            "watched": asdict(self.limits),
            "shared_memory": self.limits.memory_bytes // 2 if self._private else 0,
            "landlock": self._landlock,
            "seccomp": self._seccomp,
            "paths": paths,
        }

    def _resource_limits(self) -> dict[str, int]:
        limits = {
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": self.limits.open_files,
            "RLIMIT_FSIZE": self.limits.disk_bytes,
        }
        if sys.platform == "linux" and os.getuid() != 0:
            # The kernel counts all of a user's, and nothing of root's; the guardian counts too.
            limits["RLIMIT_NPROC"] = _tasks_of(os.getuid()) + self.limits.processes
        return limits

    def record(self) -> LaunchRecord:
        """What is limited and cut off here."""
        cut = [
            "own session and process group below a guardian that kills what is left",
            "no descriptors but the requests, the frames and the output",
        ]
        abi = self._landlock
        if abi is not None:
            cut += [
                "files: data sets, cache, run folder and credentials cannot be read; "
                "of the submission what is in its digest can; "
                "writing in the working folder, GPU devices "
                f"{'and its own /dev/shm' if self._private else 'but not /dev/shm'} only"
            ]
        if self._private:
            cut += ["shared memory and IPC: a mount and an IPC namespace of its own"]
        if abi is not None and abi >= sandbox.SCOPES_ABI:
            cut += ["signals and abstract sockets: its own processes only"]
        if self._seccomp:
            cut += [
                "network: Unix and netlink sockets only; no io_uring",
                "system calls: no limits, priorities or memory of other processes; no System V or "
                "POSIX IPC objects, keys or user namespaces",
            ]
        elif abi is not None and abi >= sandbox.NETWORK_ABI:
            cut += ["network: no TCP"]
        if sys.platform == "linux":
            cut += ["no new privileges; no capabilities but DAC_OVERRIDE; first to be killed "
                    "when memory runs out"]  # fmt: skip
        else:
            cut += ["memory, processes and disk are not watched on this system"]
        return LaunchRecord(
            launcher=self.name,
            engine=None,
            image=None,
            limits=self.limits,
            environment=tuple(sorted(passed_variables(os.environ).keys() | SET.keys())),
            landlock=abi,
            sandbox=tuple(cut),
        )


class WorkerProcess:
    """A running worker: a :class:`~ddchallenge.sampling.launchers.Worker`, once it has its order.

    Children this process already has, and those ``spare`` names later, are not the run's.
    """

    def __init__(
        self,
        environment: dict[str, str],
        spare: Callable[[], Collection[int]] = tuple,
    ) -> None:
        import psutil

        if sys.platform == "linux":
            # Should the guardian die, the run's processes become our children, found by stop().
            sandbox.prctl(sandbox.PR_SET_CHILD_SUBREAPER, 1)
        self._ours = frozenset(child.pid for child in psutil.Process().children())
        self._spare = spare
        self._status: int | None = None
        self._exceeded: str | None = None
        self._heard = b""
        self._gone = False  # the guardian, as its socket tells
        self._stopped = False
        self._control, theirs = socket.socketpair()
        script = Path(__file__).with_name("guardian.py")
        self._guardian = subprocess.Popen(
            [sys.executable, "-S", "-E", "-s", str(script), str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            bufsize=0,
        )
        theirs.close()
        pipes = (self._guardian.stdin, self._guardian.stdout, self._guardian.stderr)
        self._files = [pipe for pipe in pipes if pipe is not None]
        self.requests, self.frames, self.output = (file.fileno() for file in self._files)
        enlarge_pipe(self.frames)
        # A worker that never reads must not block us.
        for descriptor in (self.requests, self.frames, self.output):
            os.set_blocking(descriptor, False)

    def order(self, orders: dict[str, Any]) -> None:
        """Say what to start, and how: see the guardian."""
        try:
            self._control.sendall(json.dumps(orders).encode("ascii") + b"\n")
        except OSError:
            pass  # it has not lived to hear it, which is seen as its end
        self._control.setblocking(False)

    def _listen(self) -> None:
        """Take what the guardian has told."""
        while not self._gone:
            try:
                heard = self._control.recv(MESSAGE_BYTES)
            except BlockingIOError:
                break
            except OSError:
                heard = b""
            self._gone = not heard
            self._heard += heard
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._status = message.get("status", self._status)
            self._exceeded = self._exceeded or message.get("exceeded")

    def has_ended(self) -> bool:
        """Whether the worker itself is no more, whatever it has left behind."""
        self._listen()
        return self._status is not None or self._gone

    def exceeded(self) -> str | None:
        """Which limit the run exceeds, by its guardian's measure."""
        self._listen()
        return self._exceeded

    def ending(self) -> str:
        """How the worker ended, for people; waits a moment for it to be known."""
        until = time.monotonic() + ENDING_SECONDS
        while not self.has_ended():
            if time.monotonic() > until:
                return "closed its frame pipe and went on running"
            time.sleep(0.005)
        if self._status is None:
            return "lost its guardian process"
        if os.WIFSIGNALED(self._status):
            number = os.WTERMSIG(self._status)
            try:
                name = signal.Signals(number).name
            except ValueError:
                name = f"signal {number}"
            memory = " (out of memory?)" if name == "SIGKILL" else ""
            return f"was killed by {name}{memory}"
        return f"ended with exit status {os.waitstatus_to_exitcode(self._status)}"

    def stop(self, meanwhile: Callable[[], None], *, grace: float = GRACE_SECONDS) -> set[str]:
        """Stop every process of the run: a polite signal, ``grace`` seconds, then kill.

        The guardian does it and ends when nothing is left. What is left all the same we find and
        kill ourselves.
        """
        if self._stopped:
            return set()
        self._say(b"T")
        polite_until = time.monotonic() + grace
        while time.monotonic() < polite_until and self._guardian.poll() is None:
            meanwhile()
            time.sleep(0.01)
        self._say(b"K")
        began = time.monotonic()
        while self._guardian.poll() is None and time.monotonic() < began + GUARDIAN_SECONDS:
            meanwhile()
            time.sleep(0.005)
        looks = 0
        while looks < LOOKS:
            survivors = self._survivors()
            looks = 0 if survivors else looks + 1
            if survivors and time.monotonic() > began + KILL_SECONDS:
                return {f"{pid} ({name})" for pid, name in survivors.items()}
            for pid in survivors:
                _signal(pid, signal.SIGKILL)
            if survivors:
                meanwhile()
                time.sleep(0.005)
            elif self._guardian.returncode == 0:
                break  # it has ended because it had no child left, which settles it
        self._listen()
        self._stopped = True
        return set()

    def _say(self, word: bytes) -> None:
        try:
            self._control.send(word)
        except OSError:
            pass  # it is gone

    def close(self) -> None:
        """Close our ends of the pipes."""
        self._listen()
        self._control.close()
        for file in self._files:
            file.close()

    def _survivors(self) -> dict[int, str]:
        """The living processes of the run and their names: the guardian and all descendants.

        On Linux orphans come to the guardian, and after it to us (PR_SET_CHILD_SUBREAPER), so a
        double fork or a new session does not hide a process from this; elsewhere it can.
        """
        import psutil

        spared = self._ours | set(self._spare())
        alive: dict[int, str] = {}
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
                        alive[process.pid] = process.name()
                    elif process.ppid() == me.pid and process.pid != self._guardian.pid:
                        os.waitpid(process.pid, os.WNOHANG)  # an orphan that came to us
                except (psutil.NoSuchProcess, ChildProcessError):
                    continue
        self._guardian.poll()
        return alive


def _in_shared_memory(places: Places) -> bool:
    """Whether something the worker needs lies in /dev/shm, so that it cannot have its own."""
    needed = [places.submission, places.working_dir, Path(__file__).resolve(), Path(sys.prefix)]
    needed += [Path(sys.base_prefix), *([places.training_data] if places.training_data else [])]
    return any(path.is_relative_to(sandbox.SHARED_MEMORY) for path in needed)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _tasks_of(user: int) -> int:
    """How many processes and threads a user has now."""
    import psutil

    tasks = 0
    for process in psutil.process_iter():
        try:
            if process.uids().real == user:
                tasks += process.num_threads()
        except psutil.Error:
            continue
    return tasks


def enlarge_pipe(descriptor: int) -> None:
    """Fewer, larger reads; the kernel may refuse, and then it is only slower."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass
