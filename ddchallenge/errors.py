"""Every error the harness raises on purpose.

::

    DDChallengeError              never raised itself
    ├── RequestError              what was asked for cannot be done           exit status 2
    │   ├── UnknownNameError      no dataset, submission, plan ... of that name
    │   ├── MissingDataError      a dataset is not where it was looked for
    │   ├── SubmissionError       a submission folder or its submission.toml is wrong
    │   ├── PackageError          a package is damaged, hostile, or made by another version
    │   ├── BundleError           a bundle or an official .pt file is not what it claims to be
    │   └── OutputError           the place to write to exists already or cannot be written
    └── RunError                  the request was right, carrying it out failed  exit status 1
        ├── DataError             a dataset's files are damaged or not the official ones
        ├── DownloadError         a download did not finish
        ├── SamplingError         a run ended without one usable image
        ├── StorageError          the disk is full or failed while writing
        └── ScoringError          training or testing could not be carried out

A message says what was expected, what was found, and what to do next, in one to three lines. Only
``cli`` turns one into text and an exit status.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BundleError",
    "DDChallengeError",
    "DataError",
    "DownloadError",
    "MissingDataError",
    "OutputError",
    "PackageError",
    "RequestError",
    "RunError",
    "SamplingError",
    "ScoringError",
    "StorageError",
    "SubmissionError",
    "UnknownNameError",
]


class DDChallengeError(Exception):
    """Root of the tree. ``exit_status`` is what the command line ends with."""

    exit_status = 1


class RequestError(DDChallengeError):
    """What was asked for cannot be done; what was there before is as it was."""

    exit_status = 2


class UnknownNameError(RequestError):
    """A name that is in no table; the message lists the choices and the closest spelling."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        known = sorted(choices)
        spelled = {choice.casefold(): choice for choice in known}
        close = get_close_matches(name.casefold(), spelled, n=1, cutoff=0.6)
        hint = f" Did you mean {spelled[close[0]]!r}?" if close else ""
        listing = ", ".join(known) if known else "none found"
        super().__init__(f"No {kind} is called {name!r}.{hint}\nChoices: {listing}")


class MissingDataError(RequestError):
    """A dataset that is not there; the message says what is expected where, and how to fetch it."""


class SubmissionError(RequestError):
    """A submission that cannot be run; the message names the file and, where known, the line."""


class PackageError(RequestError):
    """A package that is damaged, hostile, or made by another version; nothing was unpacked."""


class BundleError(RequestError):
    """A bundle or tensor file that is damaged, hostile, or disagrees with itself."""


class OutputError(RequestError):
    """An output folder that exists already or cannot be written."""


class RunError(DDChallengeError):
    """A right request that failed while it was carried out."""


class DataError(RunError):
    """Dataset files that are damaged or are not the official ones."""


class DownloadError(RunError):
    """A download that did not finish; what had arrived is kept for the next try."""


class SamplingError(RunError):
    """A run that ended without one usable image."""


class StorageError(RunError):
    """A full or failing disk; the message says what was kept and where."""


class ScoringError(RunError):
    """Training or testing that could not be carried out."""
