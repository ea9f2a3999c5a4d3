"""The worker's parent: builds the box, starts the worker in it, and lets nothing outlive the run.

Run as a script by :mod:`ddchallenge.sampling.launchers.process`, with the number of a socket. A
process of its own because a supervisor that is killed cannot clean up: when the other end of the
socket closes, for whatever reason, everything of the run is killed. It has a session of its own,
the orphans of the run become its children (PR_SET_CHILD_SUBREAPER), and where the kernel can, it
is beyond the run's signals while the run is within its own (Landlock, ABI 6). Then one
``kill(-1)`` takes all of the run and nothing else, faster than anything can fork.

Standard library only: it starts in milliseconds. Over the socket, JSON objects a line each:

- to the guardian, first, the orders: command, folder, limits, box;
- to the supervisor ``{"pid"}`` of the worker, once started, its ``{"status"}``, once ended, as
  waitpid gives it, and ``{"exceeded"}``, which limit, before all is killed for that;
- to the guardian ``T``, a polite signal to the worker's group, and ``K``, or the end: kill all.

It ends, with status 0, when the kernel says that it has no child left: nothing of the run lives.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from ddchallenge.sampling.launchers import sandbox, seccomp, watch
else:
    import sandbox  # beside this script
    import seccomp
    import watch

__all__: list[str] = []

MAX_ORDERS: Final = 64 << 20
BOX_FAILED: Final = 126  # what a shell says of a command it found and could not run


def main() -> int:
    """Start the worker, wait for it or for the supervisor's end, kill what is left."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    orders = json.loads(_first_line(control))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    scoped = False
    if sys.platform == "linux":
        sandbox.prctl(sandbox.PR_SET_CHILD_SUBREAPER, 1)
        sandbox.no_new_privileges()
        abi = orders["landlock"]
        if abi is not None and abi >= sandbox.SCOPES_ABI:
            sandbox.scope_signals(abi)
            scoped = _is_scoped()
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        _become(orders)
    # The frame pipe must end when the run does, not when we do.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    _tell(control, {"pid": worker})
    _watch(control, wake_read, worker, watch.Watch(orders["watched"], orders["folder"]))
    _kill_all(worker, scoped)
    return 0


def _first_line(control: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = control.recv(1 << 16)
        if not piece or len(line) > MAX_ORDERS:
            raise SystemExit(1)  # no supervisor, nothing to do
        line += piece
    return bytes(line)


def _tell(control: socket.socket, message: dict[str, int | str]) -> None:
    try:
        control.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # seen as its end


def _is_scoped() -> bool:
    """Whether a signal to outside is refused; only then is ``kill(-1)`` about the run alone."""
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


def _watch(control: socket.socket, wake: int, worker: int, limits: watch.Watch) -> None:
    """Until nothing of the run is left, it takes too much, or the supervisor says so or is gone."""
    told = control.fileno()
    while True:
        ready: list[int] = select.select([told, wake], [], [], watch.INTERVAL_SECONDS)[0]
        if wake in ready:
            os.read(wake, 4096)
        if not _reap(control, worker):
            return
        if told in ready:
            try:
                said = control.recv(64)
            except OSError:
                said = b""
            if not said or b"K" in said:
                return
            _signal_group(worker, signal.SIGTERM)
        elif exceeded := limits.exceeded():
            # At once: what is too much now is a catastrophe in a second.
            _tell(control, {"exceeded": exceeded})
            return


def _reap(control: socket.socket | None, worker: int) -> bool:
    """Bury what has ended; whether anything lives."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == worker and control is not None:
            _tell(control, {"status": status})


def _signal_group(worker: int, number: signal.Signals) -> None:
    try:
        os.killpg(worker, number)
    except (ProcessLookupError, PermissionError):
        pass


def _kill_all(worker: int, scoped: bool) -> None:
    while True:
        _signal_group(worker, signal.SIGKILL)
        if scoped:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                pass
        else:
            # First stop all, so that none forks while we look for the rest.
            found: set[int] = set()
            while new := watch.descendants() - found:
                found |= new
                _signal_each(new, signal.SIGSTOP)
            _signal_each(found, signal.SIGKILL)
        if not _reap(None, worker):
            return
        time.sleep(0.002)


def _signal_each(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _become(orders: dict[str, Any]) -> NoReturn:
    """In the child: the box, then the worker."""
    try:
        os.setsid()
        if sys.platform == "linux":
            guardian = os.getppid()
            if orders["shared_memory"]:
                # Landlock names the new folder, and forbids mounting.
                sandbox.private_shared_memory(orders["shared_memory"])
            sandbox.prctl(sandbox.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guardian:
                os._exit(BOX_FAILED)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                try:
                    signal.signal(number, signal.SIG_DFL)
                except (OSError, ValueError):
                    continue
        os.chdir(orders["folder"])
        if orders["cpus"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, orders["cpus"])
        for name, value in orders["limits"].items():
            _limit(getattr(resource, name), value)
        if sys.platform == "linux":
            _close_the_box(orders)
        os.closerange(3, 256)  # ours: started with one descriptor, we have but a few
        os.execv(orders["command"][0], orders["command"])  # noqa: S606 - a list, no shell
    except BaseException as error:
        os.write(2, f"the box could not be made: {type(error).__name__}: {error}\n".encode())
        os._exit(BOX_FAILED)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def _close_the_box(orders: dict[str, Any]) -> None:
    # Where memory runs out all the same, the kernel shall choose the run and not the supervisor.
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - no pathlib
            file.write("1000")
    except OSError:
        pass
    if orders["landlock"] is not None:
        sandbox.restrict(orders["landlock"], **orders["paths"])
    sandbox.drop_capabilities()
    if orders["seccomp"]:
        sandbox.filter_calls(seccomp.program())


if __name__ == "__main__":
    sys.exit(main())
