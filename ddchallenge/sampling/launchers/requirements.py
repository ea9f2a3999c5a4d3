"""A submission's ``requirements.lock``: read strictly, and written anew for pip.

pip never sees the stranger's text. It joins lines, decodes and splits options in its own way, and
whatever it understood otherwise than we do would be an option, an address or a command of theirs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ddchallenge.errors import SubmissionError
from ddchallenge.jsonio import printable

__all__ = ["REQUIREMENTS", "pip_requirements"]

REQUIREMENTS: Final = "requirements.lock"
MAX_BYTES: Final = 16 << 20

_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_HASH: Final = r"--hash=sha256:[0-9a-f]{64}"
# PEP 508: what a marker is made of. None of it is an option for pip, whichever way it is split.
_MARKER: Final = (
    r"(?:\b(?:and|or|not in|in|os_name|sys_platform|platform_machine|platform_system"
    r"|platform_release|platform_version|platform_python_implementation|python_version"
    r"|python_full_version|implementation_name|implementation_version|extra)\b"
    r"|===|==|~=|!=|<=|>=|<|>|[()]|'[A-Za-z0-9._+*-]*'|\"[A-Za-z0-9._+*-]*\"| )+"
)
_PINNED: Final = re.compile(
    rf"(?P<name>{_NAME})(?P<extras>\[ *{_NAME}(?: *, *{_NAME})* *\])?"
    r"==(?P<version>[0-9A-Za-z][0-9A-Za-z._+!]*)"
    rf"(?: *; *(?P<marker>{_MARKER}?))?(?P<hashes>(?: +{_HASH})+)"
)
_COMMENT: Final = re.compile(r"(^|[ \t])#.*")
_CODING: Final = re.compile(r"#.*coding[:=]\s*(?!utf-8\b|ascii\b|us-ascii\b)\S")


def pip_requirements(path: Path, data: bytes) -> str:
    """The contents for a file that pip is given, made of nothing but what was understood here.

    ``data`` are the bytes of the submission's file at ``path``. Each line of the answer is
    ``name==version [; marker] --hash=sha256:...``, in the order given, without comments. Raises
    :class:`SubmissionError` for anything else: indexes, files, addresses, options of pip.
    """
    if len(data) > MAX_BYTES:
        raise SubmissionError(f"{path} has more than {MAX_BYTES >> 20} MiB. Is it a lock?")
    text = data.replace(b"\r\n", b"\n").decode("latin-1")
    if found := re.search(r"[^\x20-\x7e\t\n]", text):
        number = text.count("\n", 0, found.start()) + 1
        raise SubmissionError(
            f"{path}: only plain ASCII text is read, found {printable(repr(found[0]))} "
            f"in line {number}.\nWrite it anew with `uv pip compile --generate-hashes`."
        )
    lines = text.split("\n")
    for line in lines[:2]:
        if _CODING.match(line.strip()):
            raise _refused(path, line)
    return "".join(f"{_rewritten(path, line)}\n" for line in _logical(lines))


def _logical(lines: list[str]) -> list[str]:
    """The lines that say something. As pip does it, a line with a comment is never continued."""
    joined, begun = [], ""
    for line in lines:
        bare = _COMMENT.sub("", line)
        begun += f" {bare}"
        if bare == line and line.endswith("\\"):
            begun = begun[:-1]
            continue
        joined.append(begun)
        begun = ""
    joined.append(begun)
    return [line for line in (re.sub(r"[ \t]+", " ", each).strip() for each in joined) if line]


def _rewritten(path: Path, line: str) -> str:
    match = _PINNED.fullmatch(line)
    if match is None:
        raise _refused(path, line)
    extras = (match["extras"] or "").replace(" ", "")
    marker = f" ; {match['marker'].strip()}" if match["marker"] else ""
    hashes = " ".join(match["hashes"].split())
    return f"{match['name']}{extras}=={match['version']}{marker} {hashes}"


def _refused(path: Path, line: str) -> SubmissionError:
    return SubmissionError(
        f"{path}: every line must be `name==version --hash=sha256:...`, "
        f"found {printable(line[:80])!r}.\n"
        "`uv pip compile --generate-hashes` or `pip-compile --generate-hashes` write it so."
    )
