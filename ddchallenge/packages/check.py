"""A package from a stranger: validated in one pass, unpacked only after that.

Read in pieces of a fixed size and never further than the list at its beginning says, so neither
memory nor disk can be filled by a small file. ``tarfile`` parses no more than single headers here:
its own reading of extended headers takes the memory a stranger asks for.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import ddchallenge
from ddchallenge.atomic import atomic_folder
from ddchallenge.errors import PackageError, SubmissionError
from ddchallenge.generator import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    Submission,
    folder_digest,
    parse_submission,
    read_submission,
)
from ddchallenge.jsonio import DocumentError, from_json, parse_json, printable
from ddchallenge.packages import form
from ddchallenge.packages.form import BLOCK, CHUNK, PackageList

__all__ = ["MAX_TOTAL_BYTES", "CheckedPackage", "check_package", "unpack"]

MAX_TOTAL_BYTES: Final = 1_000_000_000

_Progress = Callable[[int, int], None]
_KINDS: Final = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
    tarfile.CONTTYPE: "a contiguous file",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGNAME: "an extended header (GNU)",
    tarfile.GNUTYPE_LONGLINK: "an extended header (GNU)",
    tarfile.XHDTYPE: "an extended header (pax)",
    tarfile.XGLTYPE: "an extended header (pax)",
    tarfile.SOLARIS_XHDTYPE: "an extended header (pax)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedPackage:
    """A package found right.

    ``size`` and ``sha256`` are of the file. ``named`` are those of its files that are not on the
    list of names, so that the entrant asked for them: worth a look.
    """

    path: Path
    size: int
    sha256: str
    contents: PackageList
    submission: Submission
    named: tuple[str, ...]


def check_package(
    path: Path, *, max_total_bytes: int = MAX_TOTAL_BYTES, on_progress: _Progress | None = None
) -> CheckedPackage:
    """Validate a package to its last byte; nothing is executed or written.

    Args:
        path: The file.
        max_total_bytes: What its files may have together; larger packages are refused unread.
        on_progress: Told how many bytes of the files are read, and of how many.

    Raises:
        PackageError: For anything that ``write_package`` does not write; the message names it.
    """
    return _read(path, max_total_bytes, on_progress, None)


def unpack(
    checked: CheckedPackage, target: Path, *, on_progress: _Progress | None = None
) -> CheckedPackage:
    """Write the files of a package that was checked to the new folder ``target``.

    The folder has the digest the package names, and `--submission` takes it.

    Raises:
        PackageError: Where the file is no longer the one that was checked, or the file system
            does not keep what was written.
        OutputError, StorageError: Where ``target`` exists or cannot be written.
    """
    with atomic_folder(target) as folder:
        again = _read(checked.path, checked.contents.total_bytes, on_progress, folder)
        if again.sha256 != checked.sha256:
            raise PackageError(f"{checked.path} was changed while it was unpacked. Run this again.")
        if folder_digest(folder) != checked.contents.digest:
            raise PackageError(f"{target} does not keep the names or contents it is given.")
        read_submission(folder)
    return again


class _Stream:
    """The archive inside a gzip file, never more of it in memory than is asked for."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._digest = hashlib.sha256()
        self.size = 0  # compressed bytes read

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes; at most CHUNK."""
        pieces: list[bytes] = []
        while count:
            piece = self._some(count)
            if not piece:
                raise PackageError(f"{self._path} ends too early: it was cut, or is damaged.")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def finish(self) -> str:
        """The SHA-256 of the file; raises PackageError where anything comes after the archive."""
        if self._some(1) or self._gzip.unused_data or self._take():
            raise PackageError(f"{self._path} goes on after its end: something is hidden there.")
        return self._digest.hexdigest()

    def _some(self, count: int) -> bytes:
        while not self._gzip.eof:
            held = self._gzip.unconsumed_tail or self._take()
            try:
                piece = self._gzip.decompress(held, count)
            except zlib.error as error:
                raise PackageError(
                    f"{self._path} is damaged, or no gzip file at all ({error}).\n"
                    "Expected is what `ddchallenge package` writes."
                ) from None
            if piece:
                return piece
            if not held and not self._gzip.eof:
                raise PackageError(f"{self._path} ends too early: it was cut, or is damaged.")
        return b""

    def _take(self) -> bytes:
        piece = self._file.read(1 << 16)
        self._digest.update(piece)
        self.size += len(piece)
        return piece


def _read(
    path: Path, max_total_bytes: int, on_progress: _Progress | None, folder: Path | None
) -> CheckedPackage:
    """Validate a package; its files go to ``folder``, which is empty, where one is given."""
    with _opened(path) as file:
        stream = _Stream(file, path)
        contents = _list(stream, path)
        _settle(contents, path, max_total_bytes)
        config = b""
        done = 0
        for number, entry in enumerate(contents.files):
            _expect(stream, path, contents, number)
            digest = hashlib.sha256()
            with _written(folder, entry.path) as write:
                left = entry.size
                while left:
                    piece = stream.read(min(CHUNK, left))
                    left -= len(piece)
                    digest.update(piece)
                    write(piece)
                    if entry.path == CONFIG_NAME:
                        config += piece
                    done += len(piece)
                    if on_progress:
                        on_progress(done, contents.total_bytes)
            _padding(stream, entry.size, path)
            if digest.hexdigest() != entry.sha256:
                raise PackageError(
                    f"{path}: {entry.path} is not the file that the list names (SHA-256 "
                    f"{digest.hexdigest()[:12]}..., listed as {entry.sha256[:12]}...)."
                )
        if (end := stream.read(len(form.END))) != form.END:
            _refuse(end[:BLOCK], path, contents, len(contents.files))
        sha256 = stream.finish()
        return CheckedPackage(
            path=path,
            size=stream.size,
            sha256=sha256,
            contents=contents,
            submission=_submission(config, path, contents),
            named=tuple(e.path for e in contents.files if not form.is_on_the_list(e.path)),
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PackageError(f"{path} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise PackageError(f"{path} is no file. Expected is what `ddchallenge package` writes.")
    with open(number, "rb") as file:  # noqa: PTH123  # a descriptor has no path
        yield file


# ------------------------------------------------------------------------------------ the list


def _list(stream: _Stream, path: Path) -> PackageList:
    block = stream.read(BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise PackageError(
            f"{path} is not a tar archive inside.\nExpected is what `ddchallenge package` writes."
        ) from None
    if info.name == form.LIST_NAME and not 0 < info.size <= form.MAX_LIST_BYTES:
        raise PackageError(
            f"{path}: {form.LIST_NAME} has {info.size:,} bytes; 1 to {form.MAX_LIST_BYTES:,} are "
            "taken."
        )
    if not 0 < info.size <= form.MAX_LIST_BYTES or block != form.header(form.LIST_NAME, info.size):
        raise PackageError(
            f"{path} does not begin with {form.LIST_NAME} but with {_described(info)}.\n"
            "Only what `ddchallenge package` writes is taken."
        )
    content = b"".join(
        stream.read(min(CHUNK, info.size - start)) for start in range(0, info.size, CHUNK)
    )
    _padding(stream, info.size, path)
    where = f"{path}: {form.LIST_NAME}"
    try:
        document = parse_json(content, where)
        _check_format(document, path)
        return from_json(PackageList, document, where)
    except DocumentError as error:
        raise PackageError(f"{error}.") from None


def _check_format(document: Any, path: Path) -> None:
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, int) and not isinstance(found, bool) and found != form.FORMAT:
        harness = document.get("harness")
        by = f" by ddchallenge {printable(harness)[:40]}" if isinstance(harness, str) else ""
        raise PackageError(
            f"{path} was made in format {str(found)[:40]}{by}; this is ddchallenge "
            f"{ddchallenge.__version__}, which reads format {form.FORMAT}.\n"
            "Take that version of ddchallenge, or have the submission packaged with this one."
        )


def _settle(contents: PackageList, path: Path, max_total_bytes: int) -> None:
    """Raise PackageError for a list that no package has, before anything it names is read."""
    if len(contents.files) > form.MAX_FILES:
        raise PackageError(
            f"{path} lists {len(contents.files):,} files; at most {form.MAX_FILES:,} are taken."
        )
    problem = form.problem_of_list(contents.files) or form.problem_of_names(contents)
    if problem:
        raise PackageError(f"{path}: {problem}")
    if contents.total_bytes > max_total_bytes:
        raise PackageError(
            f"{path} has {contents.total_bytes:,} bytes in it; at most {max_total_bytes:,} were to "
            "be read.\nIf that much is expected, say so with --max-size."
        )
    sizes = {entry.path: entry.size for entry in contents.files}
    if not 0 < sizes.get(CONFIG_NAME, 0) <= MAX_CONFIG_BYTES:
        raise PackageError(
            f"{path} has no {CONFIG_NAME} of 1 to {MAX_CONFIG_BYTES:,} bytes: it is no submission."
        )
    if (digest := form.digest_of(contents.files)) != contents.digest:
        raise PackageError(
            f"{path} names the digest {contents.digest[:12]}..., but the files it lists make "
            f"{digest[:12]}...: the list was changed."
        )


def _submission(config: bytes, path: Path, contents: PackageList) -> Submission:
    names = {entry.path for entry in contents.files}
    try:
        text = config.decode("utf-8")
        found = parse_submission(text, path / CONFIG_NAME, names.__contains__)
    except (UnicodeDecodeError, SubmissionError) as error:
        hint = ""
        if contents.harness != ddchallenge.__version__:
            hint = (
                f"\nIt was packaged by ddchallenge {contents.harness[:40]}; this is "
                f"{ddchallenge.__version__}, which may not know all that one does."
            )
        raise PackageError(f"{printable(str(error))}{hint}") from None
    if found.name != contents.submission:
        raise PackageError(
            f"{path} is called {contents.submission!r}, but its {CONFIG_NAME} says {found.name!r}."
        )
    return found


# --------------------------------------------------------------------------------- the members


def _expect(stream: _Stream, path: Path, contents: PackageList, number: int) -> None:
    """Read the header of the file of that number; raises PackageError for any other."""
    entry = contents.files[number]
    block = stream.read(BLOCK)
    if block != form.header(form.TOP + entry.path, entry.size):
        _refuse(block, path, contents, number)


def _refuse(block: bytes, path: Path, contents: PackageList, number: int) -> NoReturn:
    """Say what is there instead of the file of that number, or of the end."""
    count = len(contents.files)
    last = number == count
    expected = "its end" if last else contents.files[number].path
    if not any(block):
        raise PackageError(
            f"{path} ends after {number} of {count} files; {expected} should come next."
        )
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise PackageError(f"{path} is damaged: no file begins where {expected} should.") from None
    found = _described(info)
    if info.name in {form.TOP + entry.path for entry in contents.files[:number]}:
        raise PackageError(f"{path} holds {found} a second time.")
    if not last and info.name == form.TOP + expected and info.type == tarfile.REGTYPE:
        what = "size" if info.size != contents.files[number].size else "time, owner or mode"
        raise PackageError(f"{path}: {found} has another {what} than a package gives it.")
    raise PackageError(f"{path} holds {found} where {expected} should come.")


def _described(info: tarfile.TarInfo) -> str:
    """Such as ``'submission/x' (a symbolic link)``; at the end of what is wrong with the path."""
    kind = _KINDS.get(info.type, "" if info.isreg() else "of no known type")
    problem = form.problem_of_path(info.name) if not info.isdir() else None
    remarks = ", ".join(filter(None, (kind, f"which {problem}" if problem else "")))
    name = printable(info.name).replace("\n", "?")[:200]
    return repr(name) + (f" ({remarks})" if remarks else "")


def _padding(stream: _Stream, size: int, path: Path) -> None:
    if any(stream.read(form.padding(size))):
        raise PackageError(f"{path} has something hidden between its files.")


@contextmanager
def _written(folder: Path | None, path: str) -> Iterator[Callable[[bytes], object]]:
    if folder is None:
        yield lambda piece: None
        return
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        yield file.write
