"""What a package is made of, byte for byte.

A package is a gzip-compressed tar archive: first ``package.json`` (a :class:`PackageList`), then
the files it lists, in its order, below ``submission/``. Each member has exactly the ustar header
:func:`header` writes: a plain file, mode 644, no owner, no time. Two blocks of zeros end it, and
nothing comes after them. So a link, a device, a sparse file or an extended header is not something
to be recognised: it is another header than the one expected.
"""

from __future__ import annotations

import re
import tarfile
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from ddchallenge.generator import files_digest, is_digested, is_name

__all__ = [
    "BLOCK",
    "CHUNK",
    "END",
    "FORMAT",
    "LIST_NAME",
    "MAX_FILES",
    "MAX_LIST_BYTES",
    "ON_THE_LIST",
    "TOP",
    "PackageList",
    "PackagedFile",
    "digest_of",
    "header",
    "is_on_the_list",
    "padding",
    "problem_of_list",
    "problem_of_names",
    "problem_of_path",
]

FORMAT: Final = 1
LIST_NAME: Final = "package.json"
TOP: Final = "submission/"
BLOCK: Final = 512  # bytes; headers are of this size and contents are padded to it
END: Final = bytes(2 * BLOCK)
CHUNK: Final = 1 << 18  # bytes in memory at a time

MAX_FILES: Final = 1000
MAX_LIST_BYTES: Final = 512 * 1024
# What ustar can hold below TOP, wherever the slashes are; and a folder deep enough for anybody.
MAX_PATH_BYTES: Final = 150
MAX_PART_BYTES: Final = 90
MAX_DEPTH: Final = 8
MAX_FILE_BYTES: Final = 8**11 - 1  # what ustar can say

# What a package takes unasked: code, its description and licence, settings, and tensors that
# cannot execute. Pickles (.pt, .ckpt, .bin), notebooks, images and programs are not among it.
ON_THE_LIST: Final = (
    "submission.toml",
    "requirements.lock",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "*.py",
    "*.safetensors",
    "*.json",
    "*.toml",
    "*.txt",
    "*.yaml",
    "*.yml",
    "*.csv",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedFile:
    """One file: its path below the submission's folder, its bytes, and their hex SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageList:
    """``package.json``.

    ``harness`` is the version of ddchallenge that wrote it, ``digest`` that of the submission as
    manifests and results name it. ``files`` are sorted by path.
    """

    format: int
    harness: str
    submission: str
    digest: str
    files: tuple[PackagedFile, ...]

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size for file in self.files)


def header(path: str, size: int) -> bytes:
    """The 512 bytes before a member's content.

    Raises :class:`ValueError` for a path or a size that ustar cannot hold.
    """
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def padding(size: int) -> int:
    """How many zeros follow a content of ``size`` bytes."""
    return -size % BLOCK


def digest_of(files: Iterable[PackagedFile]) -> str:
    """The submission's digest, as ``generator.folder_digest`` would find it for the folder."""
    return files_digest((PurePosixPath(file.path), bytes.fromhex(file.sha256)) for file in files)


def is_on_the_list(path: str) -> bool:
    """Whether a file is packaged without being named."""
    name = PurePosixPath(path).name
    return any(fnmatchcase(name, pattern) for pattern in ON_THE_LIST)


def problem_of_path(path: str) -> str | None:
    """Why a path cannot be in a package, as the end of a sentence; None where it can."""
    parts = path.split("/")
    if path.startswith("/"):
        return "is an absolute path"
    if ".." in parts:
        return "has .. in it"
    if "" in parts or "." in parts:
        return "is no plain relative path"
    if not path.isprintable() or "\\" in path or "\ufffd" in path:
        return "has characters in its name that are not printable, a backslash, or no UTF-8"
    longest = max(len(part.encode()) for part in parts)
    if len(path.encode()) > MAX_PATH_BYTES or longest > MAX_PART_BYTES:
        return f"has a name of more than {MAX_PART_BYTES} bytes, or {MAX_PATH_BYTES} with folders"
    if len(parts) > MAX_DEPTH:
        return f"lies more than {MAX_DEPTH} folders deep"
    return None


def problem_of_list(files: Iterable[PackagedFile]) -> str | None:
    """What is wrong with the files of a package as a whole, as a sentence; None if nothing is."""
    folders: dict[str, str] = {}  # as a file system without case would have it: as it is written
    seen: dict[str, str] = {}
    for file in files:
        if problem := problem_of_path(file.path):
            return f"{file.path[:200]!r} {problem}."
        if (
            not is_digested(PurePosixPath(file.path))
            and PurePosixPath(file.path).name != "README.md"
        ):
            return f"{file.path} is no part of a submission's digest, so a package may not have it."
        if not 0 <= file.size <= MAX_FILE_BYTES:
            return f"{file.path} cannot have {file.size} bytes."
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            return f"{file.path} has no SHA-256 of 64 hex digits."
        if (other := seen.setdefault(_folded(file.path), file.path)) != file.path:
            return f"{other} and {file.path} are one file where case or accents do not count."
        for parent in [str(parent) for parent in PurePosixPath(file.path).parents][:-1]:
            if (other := folders.setdefault(_folded(parent), parent)) != parent:
                return f"{other}/ and {parent}/ are one folder where case or accents do not count."
    if both := sorted(seen.keys() & folders.keys()):
        return f"{seen[both[0]]} is a file and a folder."
    return None


def problem_of_names(listing: PackageList) -> str | None:
    """What is wrong with what a list says of itself, as a sentence; None if nothing is."""
    paths = [file.path for file in listing.files]
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        return f"{twice[:200]!r} is there twice."
    if paths != sorted(paths):
        return "its files are not in order."
    if not is_name(listing.submission):
        return f"{listing.submission[:80]!r} is no name for a submission."
    return None


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
