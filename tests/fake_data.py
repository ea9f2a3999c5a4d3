"""Small datasets of three classes, and the files of the real ones in every form they have."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ddchallenge import datasets
from ddchallenge.records import DatasetSpec, Source

SIDE = 8
# Three classes each; four training images a class are official, two are for testing.
CIFAR = replace(
    datasets.get_dataset("cifar100"),
    class_ids=("apple", "bear", "crab"),
    class_names=("apple", "bear", "crab"),
    image_size=SIDE,
    training_images_per_class=4,
    test_images=6,
)
# No data set that exists, for what takes any.
SHAPES = DatasetSpec(
    name="shapes",
    class_ids=("c", "s", "t"),
    class_names=("circle", "square", "triangle"),
    image_size=8,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    training_images_per_class=10,
    test_images=9,
)
# These three stand in the official wnids.txt as n02124075, n01443537, n01629819.
TINY = replace(
    datasets.get_dataset("tinyimagenet"),
    class_ids=("n01443537", "n01629819", "n02124075"),
    class_names=("goldfish", "salamander", "Egyptian cat"),
    image_size=SIDE,
    training_images_per_class=4,
    test_images=6,
)


def fake_images(spec: DatasetSpec, per_class: dict[str, int]) -> dict[str, dict[str, np.ndarray]]:
    """split -> "class/file name" -> uint8 H×W×3, all different."""
    rng = np.random.default_rng(7)
    return {
        split: {
            f"{name}/{name}_s_{number:06d}.png": rng.integers(
                0, 256, (SIDE, SIDE, 3), dtype=np.uint8
            )
            for name in spec.class_ids
            for number in rng.permutation(1000)[:count]
        }
        for split, count in per_class.items()
    }


IMAGES = fake_images(CIFAR, {"train": 3, "test": 2})


def expected(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The tensors ``IMAGES`` must come out as: by class, then by file name."""
    names = sorted(IMAGES[split])
    images = np.stack([IMAGES[split][name].transpose(2, 0, 1) for name in names])
    labels = [CIFAR.class_ids.index(name.split("/")[0]) for name in names]
    return images, np.array(labels, dtype=np.int64)


def write_class_folders(root: Path) -> Path:
    for split, files in IMAGES.items():
        for name, pixels in files.items():
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


class _Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did: str and bytes alike as its byte strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, text: bytes | str) -> None:
        content = text.encode() if isinstance(text, str) else text
        if len(content) < 256:
            self.write(b"U" + bytes([len(content)]) + content)
        else:
            self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_bytes


def python2_pickle(value: object) -> bytes:
    out = io.BytesIO()
    _Python2Pickler(out, protocol=2).dump(value)
    # The module's name when the official archive was written.
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def official_files() -> dict[str, bytes]:
    """``IMAGES`` as the official pickles, their rows in no order."""
    files = {
        "meta": python2_pickle(
            {"fine_label_names": list(CIFAR.class_ids), "coarse_label_names": ["food", "animal"]}
        )
    }
    for split, images in IMAGES.items():
        names = list(images)
        np.random.default_rng(3).shuffle(names)
        rows = np.stack([images[name].transpose(2, 0, 1).reshape(-1) for name in names])
        files[split] = python2_pickle(
            {
                "filenames": [name.split("/")[1] for name in names],
                "batch_label": "training batch 1 of 1",
                "fine_labels": [CIFAR.class_ids.index(name.split("/")[0]) for name in names],
                "coarse_labels": [0] * len(names),
                "data": rows,
            }
        )
    return files


def md5_of(files: dict[str, bytes]) -> dict[str, str]:
    return {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in files.items()
    }


def write_archive(path: Path, files: dict[str, bytes]) -> DatasetSpec:
    """Write the archive; returns the spec that has its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return replace(CIFAR, sources=(source_of(path),))


def source_of(path: Path, url: str = "http://unused.invalid") -> Source:
    content = path.read_bytes()
    return Source(
        url=url,
        filename=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


def write_tiny(root: Path, train: int = 3) -> Path:
    """A small Tiny ImageNet in the official layout; class c has images of grey level near 60·c."""
    rng = np.random.default_rng(1)

    def save(path: Path, label: int, grey: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(60 * label, 60 * label + 20, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels[:, :, 0] if grey else pixels).save(path, format="JPEG")

    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("n02124075\nn01443537\nn01629819\n")
    for label, wnid in enumerate(TINY.class_ids):
        for number in range(train):
            save(root / f"train/{wnid}/images/{wnid}_{number}.JPEG", label, grey=number == 0)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("not an image\n")
    lines = []
    # The classes interleaved, as in the official annotations.
    for number, label in enumerate([2, 0, 1, 0, 2, 1]):
        save(root / f"val/images/val_{number}.JPEG", label, grey=False)
        lines.append(f"val_{number}.JPEG\t{TINY.class_ids[label]}\t0\t0\t7\t7\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    # The official test images have no labels and must not be looked at.
    save(root / "test/images/test_0.JPEG", 0, grey=False)
    return root


def zip_folder(root: Path, path: Path) -> Source:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, f"tiny-imagenet-200/{file.relative_to(root)}")
    return source_of(path)
