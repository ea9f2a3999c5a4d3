"""A submission's folder to a package: the same files always give the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import ddchallenge
from ddchallenge.atomic import atomic_file
from ddchallenge.errors import OutputError, SubmissionError, UnknownNameError
from ddchallenge.generator import Submission, folder_digest, is_digested, is_leftover
from ddchallenge.jsonio import printable, to_json
from ddchallenge.packages import form
from ddchallenge.packages.form import PackagedFile, PackageList
from ddchallenge.packages.privacy import SecretFinder, secret_name

__all__ = ["MAX_FILE_BYTES", "TOTAL_OF_FILES", "WrittenPackage", "write_package"]

MAX_FILE_BYTES: Final = 10_000_000
TOTAL_OF_FILES: Final = 10  # all that are not named may have so many times what one may
_SHOWN: Final = 12

_Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPackage:
    """What was written.

    ``size`` and ``sha256`` are of the file; ``contents.digest`` is the submission's. ``left_out``
    pairs each path of the folder that stayed behind with the reason. ``folder_digest`` is what a
    run of the folder itself records: another one where something it covers was left out.
    """

    path: Path
    size: int
    sha256: str
    contents: PackageList
    folder_digest: str
    left_out: tuple[tuple[str, str], ...]


def write_package(
    submission: Submission,
    target: Path,
    *,
    allow: Collection[str] = (),
    max_file_bytes: int = MAX_FILE_BYTES,
    on_progress: _Progress | None = None,
) -> WrittenPackage:
    """Write the submission to the new file ``target``.

    The same files give the same bytes on any day, from any folder, under any umask (and with any
    zlib the same digest of the submission).

    Args:
        submission: What to package.
        target: The file to write; it must not exist, nor lie in the submission's folder.
        allow: Paths in the folder that go in though they are not on the list of names, are larger
            than ``max_file_bytes``, look like secrets or have a second name elsewhere.
        max_file_bytes: How large a file may be that is not named; together ten times that.
        on_progress: Told how many bytes are done, and of how many; every byte counts twice, once
            looked through and once written.

    Raises:
        SubmissionError: For a link, a device, a name no package can have, and what only ``allow``
            lets in.
        UnknownNameError: For an entry of ``allow`` that is no file of the folder.
        OutputError, StorageError: Where ``target`` cannot be written.
    """
    folder = submission.folder
    if target.absolute().parent.resolve().is_relative_to(folder):
        raise OutputError(f"{target} lies in the submission itself.\nName a place outside it.")
    if os.path.lexists(target):
        raise OutputError(f"{target} exists already and was left as it is.\nName another file.")
    survey = _Survey(folder, frozenset(allow), max_file_bytes)
    survey.walk("")
    survey.settle()

    total, done = 2 * sum(survey.taken.values()), 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        if on_progress:
            on_progress(done, total)

    files = []
    for path, size in sorted(survey.taken.items()):
        finder = SecretFinder()
        digest = hashlib.sha256()
        for piece in _content(folder, path, size):
            digest.update(piece)
            if path not in survey.allow:
                finder.update(piece)
            count(len(piece))
        if finder.found:
            survey.refuse(path, f"seems to hold {finder.found}")
        files.append(PackagedFile(path=path, size=size, sha256=digest.hexdigest()))
    if problem := form.problem_of_list(files):
        survey.refusals.append(problem)
    survey.settle()
    contents = PackageList(
        format=form.FORMAT,
        harness=ddchallenge.__version__,
        submission=submission.name,
        digest=form.digest_of(files),
        files=tuple(files),
    )
    with atomic_file(target, overwrite=False) as temporary:
        with temporary.open("wb") as file:
            _write(file, contents, folder, count)
        with temporary.open("rb") as written:
            sha256 = hashlib.file_digest(written, "sha256").hexdigest()
        size = temporary.stat().st_size
    return WrittenPackage(
        path=target,
        size=size,
        sha256=sha256,
        contents=contents,
        folder_digest=folder_digest(folder),
        left_out=tuple(sorted(survey.left_out.items())),
    )


class _Survey:
    """What of a folder goes in, by names and sizes; all that is wrong with it is said at once."""

    def __init__(self, folder: Path, allow: frozenset[str], max_file_bytes: int) -> None:
        self.allow = allow
        self.taken: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        self.refusals: list[str] = []
        self._folder = folder
        self._max = max_file_bytes
        self._known: set[str] = set()
        self._links: dict[tuple[int, int], list[str]] = {}
        self._names: dict[tuple[int, int], int] = {}

    def refuse(self, path: str, why: str) -> None:
        """Note what only ``--allow`` lets in."""
        self.refusals.append(f"{path} {why}; --allow {path} takes it all the same.")

    def walk(self, below: str) -> None:
        """Look at a folder, its path ending in a slash, and at those in it."""
        with os.scandir(self._folder / below) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                self._look(below + entry.name, entry)

    def _look(self, path: str, entry: os.DirEntry[str]) -> None:
        known = entry.stat(follow_symlinks=False)
        kind = known.st_mode
        if is_leftover(PurePosixPath(path)):
            slash = "/" if stat.S_ISDIR(kind) else ""
            self.left_out[printable(path) + slash] = "left behind by tools"
        elif stat.S_ISLNK(kind):
            self.refusals.append(f"{_shown(path)} is a symbolic link; a package holds plain files.")
        elif problem := form.problem_of_path(_utf8(path)):
            self.refusals.append(f"{_shown(path)} {problem}.")
        elif stat.S_ISDIR(kind):
            self.walk(f"{path}/")
        elif not stat.S_ISREG(kind):
            self.refusals.append(f"{path} is a device, pipe or socket; a package holds files.")
        else:
            self._file(path, known)

    def _file(self, path: str, known: os.stat_result) -> None:
        self._known.add(path)
        allowed = path in self.allow
        if secret_name(path) and not allowed:
            self.refusals.append(
                f"{path} is called like a file of secrets: move it out of the folder; "
                f"--allow {path} packages it."
            )
        elif not is_digested(PurePosixPath(path)) and PurePosixPath(path).name != "README.md":
            # Whoever takes the package makes their own; and recording one changes no package.
            self.left_out[path] = "a recorded result"
        elif not allowed and not form.is_on_the_list(path):
            self.left_out[path] = f"not on the list; --allow {path} takes it"
        elif not allowed and known.st_size > self._max:
            self.refuse(path, f"has {known.st_size:,} bytes, more than the {self._max:,} of a file")
        elif known.st_size > form.MAX_FILE_BYTES:
            self.refusals.append(f"{path} is larger than a package can hold.")
        else:
            self.taken[path] = known.st_size
            if known.st_nlink > 1 and not allowed:
                inode = (known.st_dev, known.st_ino)
                self._links.setdefault(inode, []).append(path)
                self._names[inode] = known.st_nlink

    def settle(self) -> None:
        """Raise for what is wrong so far."""
        for inode, paths in self._links.items():
            if self._names[inode] > len(paths):
                self.refuse(paths[0], "has another name outside the folder (a hard link)")
        self._links.clear()
        sizes = [size for path, size in self.taken.items() if path not in self.allow]
        if sum(sizes) > TOTAL_OF_FILES * self._max:
            self.refusals.append(
                f"All files that --allow does not name have {sum(sizes):,} bytes together, more "
                f"than {TOTAL_OF_FILES * self._max:,}: name the large ones."
            )
        if len(self.taken) > form.MAX_FILES:
            self.refusals.append(
                f"There are {len(self.taken):,} files; a package holds {form.MAX_FILES:,}."
            )
        if self.refusals:
            more = len(self.refusals) - _SHOWN
            lines = [*self.refusals[:_SHOWN], *([f"and {more} more."] if more > 0 else [])]
            raise SubmissionError(
                f"{self._folder} was not packaged:\n" + "\n".join(f"  {line}" for line in lines)
            )
        for name in sorted(self.allow - self._known):
            raise UnknownNameError(f"file of {self._folder.name}", name, self._known)


def _utf8(path: str) -> str:
    return os.fsencode(path).decode("utf-8", errors="replace")


def _shown(path: str) -> str:
    return printable(_utf8(path)).replace("\n", "?")


def _content(folder: Path, path: str, size: int) -> Iterator[bytes]:
    """The ``size`` bytes of a file, in pieces; raises SubmissionError where it is another now."""
    with _opened(folder, path) as file:
        left = size
        while left:
            piece = file.read(min(form.CHUNK, left))
            if not piece:
                raise _changed(path)
            left -= len(piece)
            yield piece
        if file.read(1):
            raise _changed(path)


@contextmanager
def _opened(folder: Path, path: str) -> Iterator[BinaryIO]:
    try:
        # Looked at before; this is for what took its place since then.
        number = os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SubmissionError(f"{folder / path} cannot be read ({error.strerror}).") from None
    with open(number, "rb") as file:  # noqa: PTH123  # a descriptor has no path
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise _changed(path)
        yield file


def _changed(path: str) -> SubmissionError:
    return SubmissionError(f"{path} was changed while it was packaged. Run this again.")


def _write(
    file: BinaryIO, contents: PackageList, folder: Path, count: Callable[[int], None]
) -> None:
    listing = (json.dumps(to_json(contents), indent=1, ensure_ascii=False) + "\n").encode()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as archive:
        archive.write(form.header(form.LIST_NAME, len(listing)))
        archive.write(listing + bytes(form.padding(len(listing))))
        for entry in contents.files:
            digest = hashlib.sha256()
            archive.write(form.header(form.TOP + entry.path, entry.size))
            for piece in _content(folder, entry.path, entry.size):
                digest.update(piece)
                archive.write(piece)
                count(len(piece))
            archive.write(bytes(form.padding(entry.size)))
            if digest.hexdigest() != entry.sha256:
                raise _changed(entry.path)
        archive.write(form.END)
