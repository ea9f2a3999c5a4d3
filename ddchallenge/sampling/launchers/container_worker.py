"""A running container: its pipes, its limits, and the end of it, with the proof."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ddchallenge.records import Limits
from ddchallenge.sampling.launchers import (
    ENDING_SECONDS,
    GRACE_SECONDS,
    KILL_SECONDS,
    sandbox,
)
from ddchallenge.sampling.launchers.cgroup import ControlGroup
from ddchallenge.sampling.launchers.engine import Engine
from ddchallenge.sampling.launchers.process import enlarge_pipe
from ddchallenge.sampling.launchers.watch import folder_problem, pause

__all__ = ["ContainerWorker", "leave_orphans_to_init"]

# How often a client is asked for the container's process until it is known.
LOOK_SECONDS: Final = 0.25
# For processes that have nothing more to do.
CLOSING_SECONDS: Final = 1.0
# Removers, and clients, that went on because the engine was too slow.
_LATE: Final[list[subprocess.Popen[bytes]]] = []
# What docker and podman end with when they could not start anything.
_ENGINE_FAILED: Final = (125, 126, 127)


def leave_orphans_to_init() -> None:
    """Podman leaves processes of its own behind at every run: they are for init to bury, not us."""
    if sys.platform == "linux":
        sandbox.prctl(sandbox.PR_SET_CHILD_SUBREAPER, 0)


class ContainerWorker:
    """A running container: a :class:`~ddchallenge.sampling.launchers.Worker`.

    ``kept`` is the folder of this machine it works in, None where that is in memory.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        command: list[str],
        limits: Limits,
        kept: Path | None = None,
    ) -> None:
        self._engine = engine
        self._name = name
        self._limits = limits
        self._kept = kept
        self._next_measure = time.monotonic()
        self._group: ControlGroup | None = None
        self._question: subprocess.Popen[bytes] | None = None
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._exceeded: str | None = None
        self._stopped = False
        leave_orphans_to_init()
        self._remover = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("remover.py")),
             engine.program, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )  # fmt: skip
        self._client = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        self._tell_remover(f"{self._client.pid}\n")
        pipes = (self._client.stdin, self._client.stdout, self._client.stderr)
        self._files = [pipe for pipe in pipes if pipe is not None]
        self.requests, self.frames, self.output = (file.fileno() for file in self._files)
        enlarge_pipe(self.frames)
        for descriptor in (self.requests, self.frames, self.output):
            os.set_blocking(descriptor, False)

    def _tell_remover(self, text: str) -> None:
        try:
            if self._remover.stdin is not None:
                self._remover.stdin.write(text.encode())
        except OSError:
            pass  # it was killed; stop() does without it

    def has_ended(self) -> bool:
        """Whether the container's client is no more; it lives as long as the worker."""
        return self._client.poll() is not None

    def ending(self) -> str:
        """How the worker ended, for people; waits a moment for it to be known."""
        try:
            status = self._client.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its frame pipe and went on running"
        if status in _ENGINE_FAILED:
            return f"could not be started by {self._engine.name} (exit status {status})"
        if status == 128 + signal.SIGKILL:
            memory = f" (out of {_mib(self._limits.memory_bytes)} of memory?)"
            return "was killed by SIGKILL" + memory
        if status > 128:
            try:
                return f"was killed by {signal.Signals(status - 128).name}"
            except ValueError:
                pass
        return f"ended with exit status {status}"

    def exceeded(self) -> str | None:
        """Which limit the kernel has enforced, where the container's group can be seen."""
        if self._exceeded or self._stopped:
            return self._exceeded
        self._measure_folder()
        if self._group is None:
            self._look_for_group()
        elif self._group.killed_for_memory():
            most = _mib(self._limits.memory_bytes)
            self._exceeded = f"over {most} of memory, {most} are allowed"
        elif self._group.refused_processes():
            most = f"{self._limits.processes:,}"
            self._exceeded = f"over {most} processes and threads, {most} are allowed"
        return self._exceeded

    def _measure_folder(self) -> None:
        if self._kept is None or (now := time.monotonic()) < self._next_measure:
            return
        self._exceeded = folder_problem(str(self._kept), self._limits.disk_bytes)
        self._next_measure = now + pause(now)

    def _look_for_group(self) -> None:
        """Ask the engine for the container's process, without waiting for the answer."""
        if self._question is None:
            if (now := time.monotonic()) >= self._next_look:
                self._next_look = now + LOOK_SECONDS
                self._question = self._ask("container", "inspect", "--format", "{{.State.Pid}}")
        elif self._question.poll() is not None:
            said = self._question.stdout.read() if self._question.stdout else b""
            if (pid := said.strip()).isdigit() and int(pid) > 0:
                self._group = ControlGroup.of(int(pid))
            _close(self._question)
            self._question = None

    def _ask(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._engine.command(*arguments, self._name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self, meanwhile: Callable[[], None], *, grace: float = GRACE_SECONDS) -> set[str]:
        """Stop the container: a polite signal, ``grace`` seconds, then removal and the proof.

        The proof is the engine's word that there is no such container, and the kernel's that its
        control group is empty. What the engine has not done in time the remover goes on with.
        """
        if self._stopped:
            return set()
        if self._exceeded:
            grace, slack = 0.0, grace  # it has had its chance; many take long to die
        else:
            slack = 0.0
        polite_until = time.monotonic() + grace
        until = polite_until + slack + KILL_SECONDS
        polite = self._ask("kill", "--signal=TERM") if grace and not self.has_ended() else None
        while time.monotonic() < polite_until and not self.has_ended():
            meanwhile()
            time.sleep(0.01)
        if self._group is not None:
            self._group.kill()  # where we may; the engine takes a moment for it
        left = True
        while left and time.monotonic() < until:
            self._until(self._ask("rm", "--force", "--volumes"), until, meanwhile)
            # By now a client has nothing to wait for, unless it is still making the container.
            self._client_gone(meanwhile)
            left = not self._is_gone(until, meanwhile)
        if polite is not None:
            polite.kill()
            _close(polite)
        if left and (self._group is None or self._group.processes()):
            return {f"container {self._name}"}
        self._stopped = True
        if not left:
            self._tell_remover("done\n")
        return set()

    def _client_gone(self, meanwhile: Callable[[], None]) -> None:
        until = time.monotonic() + ENDING_SECONDS
        while self._client.poll() is None and time.monotonic() < until:
            meanwhile()
            time.sleep(0.005)
        self._client.kill()

    def _is_gone(self, until: float, meanwhile: Callable[[], None]) -> bool:
        question = subprocess.Popen(
            self._engine.command("ps", "--all", "--quiet", "--filter", f"name=^{self._name}$"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        said = self._until(question, until, meanwhile)
        return said == b"" and (self._group is None or not self._group.processes())

    def _until(
        self, command: subprocess.Popen[bytes], until: float, meanwhile: Callable[[], None]
    ) -> bytes | None:
        """What a short command printed; None if it failed or is not done in time."""
        while command.poll() is None and time.monotonic() < until:
            meanwhile()
            time.sleep(0.005)
        if command.poll() is None:
            command.kill()
            _close(command)
            return None
        said = command.stdout.read().strip() if command.stdout else b""
        _close(command)
        return said if command.returncode == 0 else None

    def close(self) -> None:
        """Close our ends of the pipes; the remover ends, at once or when it has done its work."""
        for file in self._files:
            file.close()
        if self._question is not None:
            self._question.kill()
            _close(self._question)
        if self._remover.stdin is not None:
            self._remover.stdin.close()
        for process in (*_LATE, self._client, self._remover):
            try:
                process.wait(CLOSING_SECONDS)
            except subprocess.TimeoutExpired:
                if process not in _LATE:
                    _LATE.append(process)
        _LATE[:] = [process for process in _LATE if process.returncode is None]


def _close(command: subprocess.Popen[bytes]) -> None:
    if command.stdout is not None:
        command.stdout.close()
    command.wait()


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
