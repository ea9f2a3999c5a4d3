"""The code and the submission a result names, out of the history of a git repository."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import ddchallenge
from ddchallenge.errors import RequestError, RunError
from ddchallenge.generator import (
    CONFIG_NAME,
    Submission,
    find_submission,
    is_name,
    read_submission,
)
from ddchallenge.records import Result

__all__ = ["code_at", "code_here", "named_commit", "submission_at"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_THIS_CODE: Final = "--this-code takes the code that is here instead, and says so."
_PARENTS: Final = ("submissions", "baselines")
# What boxes a submission in: code older than it would run a stranger's in the open.
_BOX: Final = "ddchallenge/sampling/launchers/sandbox.py"


def named_commit(result: Result) -> str:
    """The commit a result was made with; raises :class:`RequestError` where it names none."""
    origin = result.provenance
    if origin.commit is None:
        raise RequestError(
            "The result names no commit: the code that made it lay in no git checkout.\n"
            + _THIS_CODE
        )
    if not _COMMIT.fullmatch(origin.commit):
        raise RequestError(f"{origin.commit[:80]!r} is no git commit.\n{_THIS_CODE}")
    if origin.dirty is not False:
        raise RequestError(
            f"The result was made with changes on top of commit {origin.commit[:12]} that were "
            f"not committed: nobody else has that code.\n{_THIS_CODE}"
        )
    return origin.commit


def code_here() -> Path:
    """The folder that holds the package that is running."""
    return Path(ddchallenge.__file__).resolve().parent.parent


@contextmanager
def code_at(commit: str, repository: Path | None) -> Iterator[Path]:
    """A folder with the code of that commit: the repository itself if it stands there unchanged.

    Else a temporary clone that shares its objects. ``repository`` is any folder in one; None is
    that of the package, else the working folder.

    The code will be run, and the result that names it is a stranger's: the commit must be part of
    what is checked out, and have the box that submissions run in. Raises :class:`RequestError`
    where it is not or has none.
    """
    top = _repository(repository)
    _check(top, commit)
    if _git(top, "rev-parse", "HEAD") == commit and not _git(
        top, "status", "--porcelain", "--untracked-files=no"
    ):
        yield top
        return
    with tempfile.TemporaryDirectory(prefix="ddchallenge-code-") as folder:
        clone = Path(folder, "code")
        cloning = ("clone", "--quiet", "--shared", "--no-checkout", "--", str(top), str(clone))
        if _git(top, *cloning) is None or (
            _git(clone, "checkout", "--quiet", "--detach", commit) is None
        ):
            raise RunError(f"git cannot check out {commit[:12]} of {top} into {clone}.")
        yield clone


def _repository(given: Path | None) -> Path:
    places = (given,) if given is not None else (code_here(), Path.cwd())
    for place in places:
        top = _git(place, "rev-parse", "--show-toplevel") if place.is_dir() else None
        if top:
            return Path(top)
    raise RequestError(
        f"{given or Path.cwd()} is in no git repository, or there is no git.\n"
        "Give the repository of ddchallenge that the result is from with --repository DIR."
    )


def _check(top: Path, commit: str) -> None:
    short = commit[:12]
    if _git(top, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise RequestError(
            f"Commit {short}, which made this result, is not in the repository {top}.\n"
            "Fetch it, or give the repository that has it with --repository DIR.\n" + _THIS_CODE
        )
    if _git(top, "cat-file", "-e", f"{commit}:ddchallenge/__init__.py") is None:
        raise RequestError(
            f"Commit {short} of {top} holds no ddchallenge.\n"
            "Give the repository of ddchallenge with --repository DIR."
        )
    if _git(top, "merge-base", "--is-ancestor", commit, "HEAD") is None:
        raise RequestError(
            f"Commit {short} is no part of what is checked out in {top}, and its harness would be "
            "run.\nLook at it and check it out first, if you trust whoever wrote it.\n" + _THIS_CODE
        )
    if _git(top, "cat-file", "-t", f"{commit}:{_BOX}") != "blob":
        raise RequestError(
            f"Commit {short} is older than the box that submissions run in: its code would run "
            "this one with all you may do.\n"
            "--this-code runs it in the box of the code that is here, and says what differs."
        )


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def submission_at(
    code: Path, result: Result, given: str | None, commit: str | None = None
) -> Submission:
    """The submission a result names, as it was: found by its name in a checkout, or ``given``.

    ``commit`` is what is checked out in ``code``, a folder that may be gone when its name is read.

    Raises :class:`RequestError` where there is none, or one with other files.
    """
    identity = result.submission
    where = f"commit {commit[:12]}" if commit else str(code)
    submission = find_submission(given) if given else _by_name(code, identity.name, where)
    if submission.identity.digest != identity.digest:
        raise RequestError(
            f"{submission.folder if given or not commit else f'{identity.name!r} of {where}'} "
            f"is not the submission that made this result: its digest is "
            f"{submission.identity.digest[:16]}, the result names {identity.digest[:16]}.\n"
            "Give the folder as it was then with --submission."
        )
    return submission


def _by_name(code: Path, name: str, where: str) -> Submission:
    for parent in _PARENTS if is_name(name) else ():
        folder = code / parent / name
        if (folder / CONFIG_NAME).is_file():
            return read_submission(folder)
    raise RequestError(
        f"The submission {name[:80]!r} is not in {where}: it is neither in submissions/ nor in "
        "baselines/.\nGive its folder, as it was then, with --submission."
    )
