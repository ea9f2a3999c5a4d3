"""Archives made by hand, honest and hostile: the parts of a package, and how they go together."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from ddchallenge.generator import Submission
from ddchallenge.packages import form, write_package
from ddchallenge.packages.form import PackagedFile, digest_of


def member(path: str, content: bytes = b"", **changes: object) -> bytes:
    """A member as tarfile writes it; ``changes`` are attributes of its TarInfo."""
    info = tarfile.TarInfo(path)
    info.size, info.mode = len(content), 0o644
    tar_format = changes.pop("tar_format", tarfile.USTAR_FORMAT)
    for name, value in changes.items():
        setattr(info, name, value)
    return info.tobuf(tar_format) + content + bytes(-len(content) % 512)


def listing(files: dict[str, bytes], /, **changes: object) -> dict[str, object]:
    """A package.json that is right for ``files``, but for the ``changes``."""
    entries = [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(files.items())
    ]
    document = {
        "format": 1,
        "harness": "0.1.0",
        "submission": "entry",
        "digest": "",
        "files": entries,
    }
    try:
        document["digest"] = digest_of(PackagedFile(**entry) for entry in entries)
    except (ValueError, IndexError):  # of paths no digest is made of
        document["digest"] = 64 * "0"
    return document | changes


def archive(*parts: bytes, end: bytes = bytes(1024)) -> bytes:
    """The gzip file of parts that follow one another."""
    return gzip.compress(b"".join(parts) + end)


def list_member(document: object) -> bytes:
    return member(form.LIST_NAME, json.dumps(document).encode())


def members(files: dict[str, bytes]) -> list[bytes]:
    """What stands after the list."""
    return [member(form.TOP + path, content) for path, content in sorted(files.items())]


def package_of(files: dict[str, bytes], /, **changes: object) -> bytes:
    """A package of ``files`` with everything as it should be, but for the list's ``changes``."""
    return archive(list_member(listing(files, **changes)), *members(files))


def files_of(package: Path) -> dict[str, bytes]:
    """What the files of a package hold, by their names in the archive; read by tarfile."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(package.read_bytes()))) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}


def packed(submission: Submission, target: Path, **options: object) -> Path:
    return write_package(submission, target, **options).path
