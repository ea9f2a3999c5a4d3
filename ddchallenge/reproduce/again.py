"""Run the code of a checkout, in a process of its own, with the settings of a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from ddchallenge.errors import RequestError, RunError
from ddchallenge.interrupts import noticed
from ddchallenge.jsonio import printable
from ddchallenge.records import Result, SamplingSummary
from ddchallenge.rules import PROTOCOLS, get_protocol

__all__ = ["run_code", "sampling_arguments", "scoring_arguments"]

# The command line of any commit; on Linux it dies with us, even if we are killed (prctl(2)).
_COMMAND: Final = """
import sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from ddchallenge.cli import main
main()
"""
_INTERRUPTED: Final = 130


def sampling_arguments(sampling: SamplingSummary, submission: Path, device: str) -> list[str]:
    """What `ddchallenge sample` has to be told, but for data and --out, to do the same again.

    Values are joined to their options: they are a stranger's, and none may become an option.
    """
    said = [
        f"--submission={submission}",
        f"--budget={sampling.budget_seconds:.6f}s",
        f"--augment={sampling.augmentation}",
        f"--seed={sampling.run_seed}",
        f"--device={device}",
    ]
    if sampling.max_images is not None:
        said.append(f"--max-images={sampling.max_images}")
    return said


def scoring_arguments(result: Result, device: str) -> list[str]:
    """What `ddchallenge score` has to be told, but for data and --out, to do the same again.

    Raises :class:`RequestError` for a protocol this version does not know.
    """
    use = result.protocol
    return [
        *_protocol(use.id, use.network),
        f"--epochs={use.epochs}",
        "--seeds=" + ",".join(str(run.seed) for run in result.runs),
        f"--numerics={use.numerics}",
        f"--device={device}",
        "--no-resume",
    ]


def _protocol(name: str, network: str) -> list[str]:
    for protocol in PROTOCOLS.values():
        if not protocol.networks and protocol.id == name:
            return [f"--protocol={name}"]
        if network in protocol.networks and get_protocol(protocol.id, network).id == name:
            return [f"--protocol={protocol.id}", f"--network={network}"]
    raise RequestError(
        f"The result was scored by {name[:80]!r} with {network[:80]!r}; this version knows "
        f"{', '.join(PROTOCOLS)}."
    )


def run_code(
    code: Path, arguments: list[str], threads: int, made: Path, commit: str | None = None
) -> None:
    """Run the ``ddchallenge`` of a folder with these arguments, and --json, until ``made`` is.

    What it shows goes to our stderr. It computes with ``threads`` threads, as far as this machine
    has that many cores: another number gives other last bits. ``commit`` is what the folder holds,
    which may be gone when its name is read.

    Raises :class:`RunError` with what it said if ``made`` is not there in the end; an interrupt is
    passed on, and is one as well.
    """
    environment = dict(os.environ)
    # -P: the working folder, where another version may lie, is not looked into.
    paths = [str(code), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if 1 <= threads <= (os.cpu_count() or 1):
        environment["OMP_NUM_THREADS"] = str(threads)
    with noticed() as notice:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C comes to it from us, and once
        )
        told = False
        while True:
            try:
                said, _ = child.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if notice.requested and not told:
                    child.send_signal(signal.SIGINT)
                    told = True
    if notice.requested:
        raise RunError(f"Interrupted; what was made is in {made.parent}.")
    if not made.exists():
        name = f"commit {commit[:12]}" if commit else str(code)
        raise RunError(f"`ddchallenge {arguments[0]}` of {name} failed: {_error(said)}")


def _error(said: bytes) -> str:
    try:
        document = json.loads(said)
        return printable(str(document["error"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "it says above why, if anything"
