"""Removes a container when its supervisor is no more.

Run as a script by :mod:`ddchallenge.sampling.launchers.container`: arguments are the engine's
program and the container's name, stdin is a pipe of which the supervisor has the other end. The
supervisor writes the number of the engine's client; it writes ``done`` when it has removed the
container itself. If the pipe ends without that, the supervisor was killed.

Standard library only: it starts in milliseconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Final

__all__: list[str] = []

# A client that was killed while it made the container may leave one a moment later.
QUIET_CHECKS: Final = 3
PAUSE_SECONDS: Final = 0.5
GIVE_UP_SECONDS: Final = 120.0


def main() -> int:
    """Wait for the supervisor's word or its end."""
    program, name = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    said = b""
    while piece := os.read(0, 4096):
        said += piece
        if said.endswith(b"done\n"):
            return 0
    if said.strip().isdigit():
        _kill_client(int(said), name)
    quiet, until = 0, time.monotonic() + GIVE_UP_SECONDS
    while quiet < QUIET_CHECKS and time.monotonic() < until:
        _engine(program, "rm", "--force", "--volumes", name)
        found = _engine(program, "ps", "--all", "--quiet", "--filter", f"name=^{name}$")
        quiet = quiet + 1 if found == b"" else 0
        time.sleep(PAUSE_SECONDS)
    return 0


def _kill_client(pid: int, name: str) -> None:
    try:
        if os.path.isdir("/proc/self"):  # noqa: PTH112 - pathlib is not light
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                if name.encode() not in file.read():
                    return  # the number belongs to another by now
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended


def _engine(program: str, *arguments: str) -> bytes | None:
    """What the engine prints; None when it fails."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, check=False, timeout=GIVE_UP_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
