"""The child's side of a command submission: lay out its working folder and run the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ddchallenge.generator import Command, is_python
from ddchallenge.records import GenerationTask

__all__ = ["link_files", "run"]

# What tools leave in a folder; a run neither needs it nor finds it.
_LEFT_OUT = frozenset({".git", "__pycache__"})


def run(task: GenerationTask, submission: Path, command: Command) -> str:
    """Run a command in the working folder; how it failed, for people, or nothing.

    It finds the submission's files there, has an empty stdin, and prints where this process does.
    ``python`` is the interpreter that runs this. Raises :class:`OSError` where it cannot be
    started.
    """
    link_files(submission, task.working_dir, {command.output, command.labels})
    program, *rest = command.arguments
    status = subprocess.call(
        [sys.executable if is_python(program) else program, *rest],
        cwd=task.working_dir,
        env=os.environ | _told(task),
        stdin=subprocess.DEVNULL,
    )
    if not status:
        return ""
    how = f"exit status {status}" if status > 0 else f"signal {_signal_name(-status)}"
    return f"the command ended with {how}"


def link_files(submission: Path, work: Path, left_out: set[str | None]) -> None:
    """Make ``work`` look like the submission's folder: real folders, links to its files.

    ``left_out`` are files of its top folder that the command is to make itself.
    """
    for folder, names, files in os.walk(submission):
        names[:] = sorted(set(names) - _LEFT_OUT)
        here = Path(folder).relative_to(submission)
        (work / here).mkdir(exist_ok=True)
        for name in files:
            if here.parts or name not in left_out:
                (work / here / name).symlink_to(Path(folder, name))


def _told(task: GenerationTask) -> dict[str, str]:
    told = {
        "DDCHALLENGE_DATASET": task.dataset.name,
        "DDCHALLENGE_DEVICE": task.device,
        "DDCHALLENGE_SEED": str(task.run_seed),
    }
    if task.training_data is not None:
        told["DDCHALLENGE_TRAINING_DATA"] = str(task.training_data)
    return told


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
