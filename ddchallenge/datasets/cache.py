"""Decoded splits on disk: memory-mapped, checked on every load, never half-written.

An entry is a folder ``<dataset>/<split>-<fingerprint>`` with ``images.npy`` (uint8 N×3×S×S),
``labels.npy`` (int64 N) and ``split.json``. The fingerprint is of the names, sizes and times of
change of the source files, so that changed files are decoded anew; and, where no checksum says
what is in them, of the place they lie at. An entry that is damaged is replaced. An entry is made
in a folder beside it and renamed, by one process at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ddchallenge.datasets.files import writing
from ddchallenge.datasets.reader import Reader, Split, check_labels
from ddchallenge.errors import DataError, OutputError
from ddchallenge.records import DatasetSpec, DatasetSplit, LabeledImages

if TYPE_CHECKING:
    from ddchallenge.records import LabelArray

__all__ = ["SplitDigest", "load"]

# Part of every fingerprint: raised whenever the same files would be decoded to other tensors.
_DECODER: Final = 1
_ADVICE: Final = "set DDCHALLENGE_CACHE"


class SplitDigest:
    """The SHA-256 over a decoded split, hex.

    Hashed are, in this order: the ASCII lines ``ddchallenge split 1``, ``<dataset> <split>``,
    ``labels int64 <N>`` and ``images uint8 <N>x3x<S>x<S>``, each ending in a newline; the labels
    as little-endian int64; the images in C order, fed in pieces to :meth:`update`.
    """

    def __init__(self, spec: DatasetSpec, split: Split, labels: LabelArray) -> None:
        n, side = len(labels), spec.image_size
        head = (
            f"ddchallenge split 1\n{spec.name} {split}\n"
            f"labels int64 {n}\nimages uint8 {n}x3x{side}x{side}\n"
        )
        self._hash = hashlib.sha256(head.encode())
        self._hash.update(labels.astype("<i8").tobytes())

    def update(self, images: memoryview) -> None:
        """Take the next images, C-contiguous."""
        self._hash.update(images)

    def hexdigest(self) -> str:
        """64 hex digits."""
        return self._hash.hexdigest()


def load(spec: DatasetSpec, split: Split, reader: Reader, cache: Path) -> DatasetSplit:
    """A split from its entry in the folder ``cache``, which is made first if need be.

    Raises :class:`DataError` where the source is damaged or changes while it is read,
    :class:`OutputError` and :class:`StorageError` where the cache cannot be written.
    """
    fingerprint = _fingerprint(spec, split, reader)
    entry = cache / spec.name / f"{split}-{fingerprint[:20]}"
    if loaded := _open(spec, split, entry):
        return loaded
    with writing(cache, _ADVICE), _locked(entry.parent):
        # Another process may have decoded it while this one waited.
        if loaded := _open(spec, split, entry):
            return loaded
        for abandoned in entry.parent.glob("*.tmp"):
            _remove(abandoned)
        built = _temporary(entry)
        try:
            _write(spec, split, reader, built)
            if _fingerprint(spec, split, reader) != fingerprint:
                raise DataError(f"{reader.path} was changed while it was read. Run this again.")
            # What is there was found damaged above.
            _remove(entry)
            built.rename(entry)
        finally:
            _remove(built)
    if loaded := _open(spec, split, entry):
        return loaded
    raise OutputError(f"{entry} does not stay as it was written. To use another place, {_ADVICE}.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process decodes a dataset, the others wait; the lock of one that is killed is free."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fingerprint(spec: DatasetSpec, split: Split, reader: Reader) -> str:
    lines = [
        f"decoder {_DECODER}",
        f"{spec.name} {split} {spec.image_size}",
        " ".join(spec.class_ids),
        reader.form,
        *reader.stamps(split),
    ]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _open(spec: DatasetSpec, split: Split, entry: Path) -> DatasetSplit | None:
    """The split in ``entry``, or None if that is not there or not what was written."""
    import numpy as np

    try:
        digest = json.loads((entry / "split.json").read_text(encoding="utf-8"))["digest"]
        images: Any = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        labels: Any = np.load(entry / "labels.npy", mmap_mode="r", allow_pickle=False)
        side = spec.image_size
        if images.dtype != np.uint8 or images.shape != (len(labels), 3, side, side):
            return None
        if labels.dtype != np.int64 or not images.flags.c_contiguous:
            return None
        found = SplitDigest(spec, split, labels)
        found.update(images.data)
        if found.hexdigest() != digest:
            return None
        check_labels(spec, split, labels, entry)
    # What a damaged header, a cut file or a stranger's JSON raise.
    except (OSError, ValueError, TypeError, KeyError, EOFError, DataError):
        return None
    counts = np.bincount(labels, minlength=spec.num_classes)
    smallest = int(counts.min())
    return DatasetSplit(
        spec=spec,
        split=split,
        data=LabeledImages(images, labels),
        digest=digest,
        folder=entry,
        images_per_class=smallest,
        official_images_per_class=(
            spec.training_images_per_class if split == "train" else smallest
        ),
    )


def _write(spec: DatasetSpec, split: Split, reader: Reader, folder: Path) -> None:
    """Decode into the new ``folder``."""
    import numpy as np

    decoded = reader.decode(split)
    labels = decoded.labels
    check_labels(spec, split, labels, reader.path)
    folder.mkdir()
    np.save(folder / "labels.npy", labels, allow_pickle=False)
    digest = SplitDigest(spec, split, labels)
    shape = (len(labels), 3, spec.image_size, spec.image_size)
    # Written, not memory-mapped: a full disk is an error here and a crash there.
    with (folder / "images.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in decoded.chunks:
            digest.update(chunk.data)
            file.write(chunk.data)
    record = {
        "schema": 1,
        "dataset": spec.name,
        "split": split,
        "source": str(reader.path),
        "images": len(labels),
        "digest": digest.hexdigest(),
    }
    (folder / "split.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _temporary(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}-{secrets.token_hex(4)}.tmp")


def _remove(path: Path) -> None:
    """Remove a folder, or a file where a folder should be, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
