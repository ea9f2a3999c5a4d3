"""The datasets: facts of the table, every form on disk, the cache; real images where they are."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from fake_data import (
    CIFAR,
    IMAGES,
    SIDE,
    TINY,
    expected,
    md5_of,
    official_files,
    python2_pickle,
    write_archive,
    write_class_folders,
    write_tiny,
    zip_folder,
)
from PIL import Image

from ddchallenge import datasets
from ddchallenge.datasets import cifar100, locate
from ddchallenge.datasets.digits import test_mask as digits_test_mask
from ddchallenge.datasets.images import ImageFolder
from ddchallenge.errors import (
    DataError,
    MissingDataError,
    OutputError,
    StorageError,
    UnknownNameError,
)
from ddchallenge.records import DatasetSplit, GenerationTask

REAL_DATA = os.environ.get("DDCHALLENGE_DATA")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDCHALLENGE_DATA", raising=False)


def assert_holds(loaded: DatasetSplit, split: str) -> None:
    images, labels = expected(split)
    np.testing.assert_array_equal(loaded.data.images, images)
    np.testing.assert_array_equal(loaded.data.labels, labels)


# ---------------------------------------------------------------- the table


def test_unknown_dataset_lists_the_choices():
    """A misspelt name is answered with the close one and with all there are."""
    with pytest.raises(UnknownNameError, match="'cifar100'") as caught:
        datasets.get_dataset("cifar10")
    assert "cifar100, digits, folder:PATH, tinyimagenet" in str(caught.value)


def test_specs_agree_with_the_official_protocol():
    """Class orders, sizes and normalisation are the evaluator's, as the challenge publishes it."""
    cifar, tiny = datasets.get_dataset("cifar100"), datasets.get_dataset("tinyimagenet")
    assert (cifar.num_classes, cifar.image_size, cifar.test_images) == (100, 32, 10_000)
    assert cifar.class_ids[:3] == ("apple", "aquarium_fish", "baby")
    assert cifar.class_ids[-1] == "worm"
    assert list(cifar.class_ids) == sorted(set(cifar.class_ids))
    assert cifar.class_names[1] == "aquarium fish"
    assert cifar.mean == (0.5071, 0.4866, 0.4409)
    assert cifar.std == (0.2673, 0.2564, 0.2762)
    assert (tiny.num_classes, tiny.image_size, tiny.test_images) == (200, 64, 10_000)
    assert tiny.class_ids[:2] == ("n01443537", "n01629819")
    assert list(tiny.class_ids) == sorted(set(tiny.class_ids))
    assert tiny.class_names[:2] == ("goldfish", "European fire salamander")
    assert len(set(tiny.class_names)) == 200
    assert tiny.mean == (0.485, 0.456, 0.406)
    assert tiny.std == (0.229, 0.224, 0.225)
    assert {spec.training_images_per_class for spec in (cifar, tiny)} == {500}


def test_data_folder_prefers_the_argument_to_the_variable_to_the_user_cache(tmp_path, monkeypatch):
    """--data-dir, else DDCHALLENGE_DATA, else a folder in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert datasets.data_folder(None) == tmp_path / "xdg" / "ddchallenge" / "data"
    monkeypatch.setenv("DDCHALLENGE_DATA", str(tmp_path / "variable"))
    assert datasets.data_folder(None) == tmp_path / "variable"
    assert datasets.data_folder(tmp_path / "argument") == tmp_path / "argument"


# ---------------------------------------------------------------- digits


def test_digits_pixels_are_those_of_scikit_learn():
    """Every pixel is the scan's 0..16 scaled to 0..255 and rounded, in three equal channels."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    test = digits_test_mask(scans.target.astype(np.int64), 500)
    for split, chosen in (("train", ~test), ("test", test)):
        loaded = datasets.load_split(datasets.get_dataset("digits"), split)
        scan_labels = scans.target[chosen]
        order = np.argsort(scan_labels, kind="stable")
        rounded = np.floor(scans.images[chosen][order] * 255 / 16 + 0.5)
        for channel in range(3):
            np.testing.assert_array_equal(loaded.data.images[:, channel], rounded)
        np.testing.assert_array_equal(loaded.data.labels, scan_labels[order])


def test_digits_split_is_stratified_and_fixed():
    """1297 and 500 images, every class giving its share to within one, and never other images.

    The digests were taken once; a change of either breaks every result recorded on digits.
    """
    spec = datasets.get_dataset("digits")
    train, test = (datasets.load_split(spec, split) for split in ("train", "test"))
    assert train.data.images.shape == (1297, 3, 8, 8)
    assert test.data.images.shape == (500, 3, 8, 8)
    per_class = np.bincount(train.data.labels) + np.bincount(test.data.labels)
    assert per_class.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(np.bincount(test.data.labels) - per_class * 500 / 1797).max() < 1
    assert train.images_per_class == train.official_images_per_class == 126
    assert train.digest == "f47409f52604af1e40806e27ce7b795adbb935b14b414c6f90f5a9d34e23348c"
    assert test.digest == "c9db814acf4853661e0c266546eef4c189d1fdd2cd5413db7f377101c0de7644"


def test_digits_normalisation_is_that_of_the_training_split():
    """The constants of the table are mean and deviation of the training pixels, to 4 digits."""
    spec = datasets.get_dataset("digits")
    pixels = datasets.load_split(spec, "train").data.images / 255
    np.testing.assert_allclose(pixels.mean(axis=(0, 2, 3)), spec.mean, atol=5e-5)
    np.testing.assert_allclose(pixels.std(axis=(0, 2, 3)), spec.std, atol=5e-5)


def test_stratified_split_by_hand():
    """Seven images of class 0 and three of class 1, four for testing, worked out on paper.

    Shares 2.8 and 1.2 become 3 and 1; class 0 gives its members 1, 3 and 5 (floor of 7/6, 21/6
    and 35/6), class 1 its member 1 (floor of 3/2).
    """
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0])
    assert np.flatnonzero(digits_test_mask(labels, 4)).tolist() == [2, 4, 5, 7]


# ---------------------------------------------------------------- cifar100


@pytest.mark.parametrize("split", ["train", "test"])
def test_three_forms_of_cifar_are_the_same_tensors(tmp_path, monkeypatch, split):
    """Archive, unpacked pickles and class folders give equal images, labels and digest."""
    files = official_files()
    spec = write_archive(tmp_path / "a" / "cifar-100-python.tar.gz", files)
    (tmp_path / "b" / "cifar-100-python").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "b" / "cifar-100-python" / name).write_bytes(content)
    monkeypatch.setattr(cifar100, "OFFICIAL_MD5", md5_of(files))
    write_class_folders(tmp_path / "c" / "cifar-100")
    loaded = [datasets.load_split(spec, split, tmp_path / name) for name in "abc"]
    for found in loaded:
        assert_holds(found, split)
        assert (found.images_per_class, found.official_images_per_class) == (
            (3, 4) if split == "train" else (2, 2)
        )
    assert len({found.digest for found in loaded}) == 1
    assert len({found.folder for found in loaded}) == 3


@pytest.mark.parametrize("form", ["class folders", "pickles", "tiny"])
def test_data_dir_may_be_the_dataset_folder_itself(tmp_path, monkeypatch, form):
    """--data-dir is the parent of a known folder or that folder, recognised by what is in it."""
    if form == "class folders":
        spec, folder = CIFAR, write_class_folders(tmp_path / "any-name")
    elif form == "pickles":
        spec, folder = CIFAR, tmp_path
        for name, content in official_files().items():
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(cifar100, "OFFICIAL_MD5", md5_of(official_files()))
    else:
        spec, folder = TINY, write_tiny(tmp_path / "any-name")
    assert len(datasets.load_split(spec, "test", folder).data) == 6
    other = TINY if spec is CIFAR else CIFAR
    with pytest.raises(MissingDataError):
        datasets.load_split(other, "test", folder)


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def bomb(tmp_path):
    """A pickle that does something, seen to do it; and the folder that would tell."""
    seen = tmp_path / "control"
    pickle.loads(pickle.dumps(_Bomb(seen), protocol=2))  # noqa: S301  (our own)
    assert seen.is_dir()
    return pickle.dumps(_Bomb(tmp_path / "exploded"), protocol=2), tmp_path / "exploded"


@pytest.mark.parametrize("form", ["archive", "archive of another size", "pickles"])
def test_wrong_checksum_is_refused_before_anything_is_unpickled(tmp_path, monkeypatch, bomb, form):
    """A file that is not the official one is never unpickled, and the error says what to do."""
    content, exploded = bomb
    data = tmp_path / "data"
    files = official_files()
    hostile = {**files, "meta": content, "test": content}
    opened = []
    monkeypatch.setattr(cifar100, "_unpickle", lambda *args: opened.append(args))
    if form == "pickles":
        (data / "cifar-100-python").mkdir(parents=True)
        for name, body in hostile.items():
            (data / "cifar-100-python" / name).write_bytes(body)
        spec, message = CIFAR, "Expected MD5"
    else:
        good = write_archive(tmp_path / "good" / "cifar-100-python.tar.gz", files).sources[0]
        spec = write_archive(data / "cifar-100-python.tar.gz", hostile)
        monkeypatch.setattr(tarfile, "open", lambda **_: opened.append("tar"))
        size = spec.sources[0].size + (form != "archive")
        spec = replace(spec, sources=(replace(good, size=size),))
        message = "Expected SHA-256" if form == "archive" else f"Expected {size} bytes"
    with pytest.raises(DataError, match=message):
        datasets.load_split(spec, "test", data)
    assert opened == []
    assert not exploded.exists()


def test_unpickler_refuses_everything_but_arrays_even_if_the_checksum_is_right(tmp_path, bomb):
    """Belt and braces: with a matching checksum a hostile pickle still runs nothing."""
    content, exploded = bomb
    spec = write_archive(
        tmp_path / "cifar-100-python.tar.gz", {**official_files(), "test": content}
    )
    with pytest.raises(DataError, match=r"wants to load posix\.mkdir"):
        datasets.load_split(spec, "test", tmp_path)
    assert not exploded.exists()
    assert_holds(datasets.load_split(spec, "train", tmp_path), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": b"\x80\x02garbage"}, "no pickle"),
        ({"test": python2_pickle([1, 2])}, "expected a dict"),
        ({"test": python2_pickle({"data": [], "fine_labels": [7], "filenames": ["a"]})}, "hold"),
        ({"meta": python2_pickle({"fine_label_names": ["bear", "apple", "crab"]})}, "in order"),
    ],
    ids=["not a pickle", "not a dict", "wrong contents", "wrong class order"],
)
def test_pickles_of_another_shape_are_refused(tmp_path, change, message):
    """What is in the pickles is checked too: types, shapes, labels, class order."""
    spec = write_archive(tmp_path / "cifar-100-python.tar.gz", {**official_files(), **change})
    with pytest.raises(DataError, match=message):
        datasets.load_split(spec, "test", tmp_path)


# ---------------------------------------------------------------- tinyimagenet


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_tiny_labels_follow_the_sorted_ids_and_the_annotations(tmp_path, form):
    """Labels are those of sorted ids, not of wnids.txt; grey images become RGB; by file name."""
    root = write_tiny(tmp_path / "source")
    spec, data = TINY, tmp_path / "data"
    data.mkdir()
    if form == "folder":
        root.rename(data / "tiny-imagenet-200")
        root = data / "tiny-imagenet-200"
    else:
        spec = replace(TINY, sources=(zip_folder(root, data / "tiny-imagenet-200.zip"),))
    train, test = (datasets.load_split(spec, split, data) for split in ("train", "test"))
    assert train.data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    files = [f"train/{wnid}/images/{wnid}_{n}.JPEG" for wnid in TINY.class_ids for n in range(3)]
    files += [f"val/images/val_{number}.JPEG" for number in (1, 3, 2, 5, 0, 4)]
    images = np.concatenate([train.data.images, test.data.images])
    for name, found in zip(files, images, strict=True):
        with Image.open(root / name) as image:
            reference = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(found, reference)
    grey = train.data.images[::3]
    np.testing.assert_array_equal(grey[:, 0], grey[:, 2])
    assert (train.images_per_class, train.official_images_per_class) == (3, 4)


def test_damaged_zip_is_refused_by_its_checksum(tmp_path):
    """One changed byte in the official zip and nothing of it is read."""
    source = zip_folder(write_tiny(tmp_path / "source"), tmp_path / "tiny-imagenet-200.zip")
    content = bytearray((tmp_path / "tiny-imagenet-200.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(content)
    with pytest.raises(DataError, match="Expected SHA-256"):
        datasets.load_split(replace(TINY, sources=(source,)), "train", tmp_path)


def annotate(root: Path, old: str, new: str) -> None:
    path = root / "val/val_annotations.txt"
    path.write_text(path.read_text().replace(old, new))


def save_png(path: Path, size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB") -> None:
    Image.new(mode, size).save(path, format="PNG")


@pytest.mark.parametrize(
    ("split", "damage", "message"),
    [
        ("test", lambda r: annotate(r, "n01629819", "n99999999"), r"line 3: .*'val_2.JPEG"),
        ("test", lambda r: annotate(r, "val_1.", "val_0."), r"line 2: 'val_0.JPEG' stands"),
        ("test", lambda r: (r / "val/images/val_4.JPEG").unlink(), r"val_4.JPEG is missing"),
        ("test", lambda r: save_png(r / "val/images/x.png"), r"x.png is in no line"),
        ("test", lambda r: (r / "val/val_annotations.txt").unlink(), "cannot be read"),
        ("test", lambda r: annotate(r, "n01629819", "n01443537"), "'n01629819' has no image"),
        (
            "test",
            lambda r: (
                (r / "val/images/val_5.JPEG").unlink(),
                annotate(r, "val_5.JPEG\tn01629819\t0\t0\t7\t7\n", ""),
            ),
            "must have all 6 images, found 5",
        ),
        (
            "test",
            lambda r: annotate(r, "val_5.JPEG\tn01629819", "val_5.JPEG\tn01443537"),
            "'n01629819' has 1 and 'n01443537' has 3",
        ),
        ("train", lambda r: (r / "train/n01629819").rename(r / "away"), "'n01629819' missing"),
        ("train", lambda r: (r / "train/n5").mkdir(), "no class of tinyimagenet is called 'n5'"),
        (
            "train",
            lambda r: [f.unlink() for f in (r / "train/n01629819/images").iterdir()],
            "'n01629819' has no image",
        ),
        (
            "train",
            lambda r: [save_png(r / f"train/n01629819/images/{i}.png") for i in range(2)],
            "5 training images, more than the official 4",
        ),
    ],
)
def test_wrong_or_incomplete_layouts_are_named(tmp_path, split, damage, message):
    """Every way a layout can be wrong ends with the file, line or class that is at fault."""
    damage(write_tiny(tmp_path / "tiny-imagenet-200"))
    with pytest.raises(DataError, match=message):
        datasets.load_split(TINY, split, tmp_path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "name",
    ["train/n01629819/images/n01629819_1.JPEG", "val/images/val_4.JPEG", "val/val_annotations.txt"],
)
def test_pipes_in_tiny_imagenet_are_refused_and_not_waited_for(tmp_path, name):
    """In the place of a training image, a validation image and the annotations."""
    pipe(write_tiny(tmp_path / "tiny-imagenet-200") / name)
    with pytest.raises(DataError, match=f"{name} .*expected a file, found a pipe"):
        datasets.load_split(TINY, "train" if name.startswith("train") else "test", tmp_path)


def test_pipes_in_cifar_are_refused_and_not_waited_for(tmp_path, cifar):
    """In the place of an image; the archive and the pickles are looked for as files."""
    name = f"cifar-100/train/{min(IMAGES['train'])}"
    pipe(cifar / name)
    with pytest.raises(DataError, match=f"{name} .*expected a file, found a pipe"):
        datasets.load_split(CIFAR, "train", cifar)
    other = tmp_path / "other"
    (other / "cifar-100-python").mkdir(parents=True)
    for path in ("cifar-100-python.tar.gz", *(f"cifar-100-python/{n}" for n in official_files())):
        os.mkfifo(other / path)
    with pytest.raises(MissingDataError):
        datasets.load_split(CIFAR, "train", other)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_text("hello"), "is not a whole PNG or JPEG"),
        (truncate, "is not a whole PNG or JPEG"),
        (lambda p: save_png(p, (9, 8)), "expected 8×8 pixels, grey or RGB, found 9×8 of mode RGB"),
        (lambda p: save_png(p, mode="RGBA"), "found 8×8 of mode RGBA"),
        (lambda p: save_png(p, mode="I;16"), "found 8×8 of mode I;16"),
        (lambda p: Image.new("RGB", (8, 8)).save(p, format="GIF"), "is not a whole PNG or JPEG"),
        (lambda p: p.write_bytes(bytes((1 << 20) + 1)), "larger than 1048576 bytes"),
    ],
    ids=["text", "truncated", "other size", "alpha", "16 bits", "gif", "huge"],
)
def test_damaged_image_is_named_and_leaves_nothing_in_the_cache(tmp_path, damage, message):
    """One bad image among good ones: its path is in the error and no half split is kept."""
    bad = write_tiny(tmp_path / "tiny-imagenet-200") / "train/n01629819/images/n01629819_1.JPEG"
    damage(bad)
    with pytest.raises(DataError, match=f"n01629819_1.JPEG.*{message}"):
        datasets.load_split(TINY, "train", tmp_path)
    assert entries(tmp_path / "cache/tinyimagenet") == []


def test_missing_data_says_what_is_expected_where(tmp_path):
    """The folder looked in, the forms it may have, the fetch command and the two ways to point."""
    with pytest.raises(MissingDataError) as caught:
        datasets.load_split(datasets.get_dataset("tinyimagenet"), "test", tmp_path / "nowhere")
    message = str(caught.value)
    for part in (
        f"{tmp_path / 'nowhere'} (there is no such folder)",
        "tiny-imagenet-200.zip",
        "ddchallenge data fetch tinyimagenet",
        "--data-dir",
        "DDCHALLENGE_DATA",
    ):
        assert part in message


# ---------------------------------------------------------------- cache


@pytest.fixture
def cifar(tmp_path):
    """CIFAR class folders below ``tmp_path``."""
    write_class_folders(tmp_path / "cifar-100")
    return tmp_path


def entries(folder: Path) -> list[str]:
    """What lies in a dataset's cache folder, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def refuse_to_decode(monkeypatch):
    def decode(self, split):
        raise AssertionError("decoded again")

    monkeypatch.setattr(ImageFolder, "decode", decode)


def test_second_load_is_the_first_without_decoding(cifar, monkeypatch):
    """The cache alone gives the second load: read-only, memory-mapped, equal."""
    first = datasets.load_split(CIFAR, "train", cifar)
    refuse_to_decode(monkeypatch)
    second = datasets.load_split(CIFAR, "train", cifar)
    assert_holds(second, "train")
    assert second.digest == first.digest
    assert isinstance(second.data.images, np.memmap)
    assert not second.data.images.flags.writeable


def test_digest_is_what_the_documentation_says(cifar):
    """SHA-256 over a text header, the labels and the images, computed here by hand."""
    loaded = datasets.load_split(CIFAR, "test", cifar)
    images, labels = expected("test")
    text = b"ddchallenge split 1\ncifar100 test\nlabels int64 6\nimages uint8 6x3x8x8\n"
    digest = hashlib.sha256(text + labels.astype("<i8").tobytes() + images.tobytes())
    assert loaded.digest == digest.hexdigest()


def test_generator_reads_the_training_folder_and_the_test_set_is_elsewhere(cifar, tmp_path):
    """What a worker is given is the training split's own folder, where no test image lies."""
    train, test = (datasets.load_split(CIFAR, split, cifar) for split in ("train", "test"))
    task = GenerationTask(
        dataset=CIFAR, device="cpu", run_seed=0, training_data=train.folder, working_dir=tmp_path
    )
    np.testing.assert_array_equal(task.load_training_data().images, expected("train")[0])
    assert train.folder != test.folder
    assert {path.name for path in train.folder.iterdir()} == {
        "images.npy",
        "labels.npy",
        "split.json",
    }


def flip_byte(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda e: flip_byte(e / "images.npy"),
        lambda e: flip_byte(e / "labels.npy", -8),
        lambda e: flip_byte(e / "images.npy", 12),
        lambda e: truncate(e / "images.npy"),
        lambda e: (e / "images.npy").unlink(),
        lambda e: (e / "labels.npy").write_bytes(b""),
        lambda e: (e / "split.json").write_text("{"),
        lambda e: (e / "split.json").write_text(json.dumps(["digest"])),
        lambda e: np.save(e / "images.npy", np.array([{}], dtype=object), allow_pickle=True),
        lambda e: ([f.unlink() for f in e.iterdir()], e.rmdir(), e.write_text("a file")),
    ],
)
def test_damaged_cache_is_never_trusted_but_rebuilt(cifar, damage):
    """Whatever happens to an entry, the next load gives the right tensors and mends it."""
    first = datasets.load_split(CIFAR, "train", cifar)
    damage(first.folder)
    again = datasets.load_split(CIFAR, "train", cifar)
    assert_holds(again, "train")
    assert (again.digest, again.folder) == (first.digest, first.folder)
    assert entries(first.folder.parent) == [first.folder.name]


def test_changed_source_is_decoded_again(cifar):
    """A replaced image is seen even if its size is the same, and so is a removed one."""
    first = datasets.load_split(CIFAR, "train", cifar)
    path = cifar / "cifar-100/train" / min(IMAGES["train"])
    before = path.stat()
    size, time = before.st_size, before.st_mtime_ns
    flipped = 255 - IMAGES["train"][min(IMAGES["train"])]
    Image.fromarray(flipped).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(time, time + 1))
    assert path.stat().st_size == size
    second = datasets.load_split(CIFAR, "train", cifar)
    np.testing.assert_array_equal(second.data.images[0], flipped.transpose(2, 0, 1))
    assert second.digest != first.digest
    path.unlink()
    third = datasets.load_split(CIFAR, "train", cifar)
    assert (len(third.data), third.images_per_class) == (8, 2)


@pytest.mark.parametrize("damaged", [False, True])
def test_loads_at_the_same_time_decode_once(cifar, monkeypatch, damaged):
    """Six loads that begin together all get the right tensors from one decoding, one entry."""
    if damaged:
        flip_byte(datasets.load_split(CIFAR, "train", cifar).folder / "images.npy")
    everybody, decode, decoded = threading.Barrier(6), ImageFolder.decode, []

    def slowly(self, split):
        decoded.append(split)
        # Long enough for the others to come to the lock.
        sleep(0.2)
        return decode(self, split)

    def load(_):
        everybody.wait(timeout=20)
        return datasets.load_split(CIFAR, "train", cifar)

    monkeypatch.setattr(ImageFolder, "decode", slowly)
    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(load, range(6)))
    for found in loaded:
        assert_holds(found, "train")
    assert decoded == ["train"]
    assert entries(loaded[0].folder.parent) == [loaded[0].folder.name]


def test_leftovers_of_killed_processes_are_removed(cifar, tmp_path):
    """What a process that was killed while it decoded has left is gone after the next decoding."""
    leftover = tmp_path / "cache/cifar100/train-0123-4567.tmp"
    leftover.mkdir(parents=True)
    (leftover / "images.npy").write_bytes(b"half")
    loaded = datasets.load_split(CIFAR, "test", cifar)
    assert entries(leftover.parent) == [loaded.folder.name]


def test_source_that_changes_while_it_is_read_is_not_cached(cifar, monkeypatch):
    """Files that are being copied while they are decoded give an error, not a wrong entry."""
    decode = ImageFolder.decode

    def copied_meanwhile(self, split):
        decoded = decode(self, split)
        save_png(cifar / "cifar-100/train/apple/zz_new.png")
        return decoded

    monkeypatch.setattr(ImageFolder, "decode", copied_meanwhile)
    with pytest.raises(DataError, match="changed while it was read"):
        datasets.load_split(CIFAR, "train", cifar)
    assert entries(cifar / "cache/cifar100") == []


def test_unwritable_cache_says_which_variable_to_set(tmp_path):
    """A cache folder that cannot be made is a wrong request, with the way out in the message."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="set DDCHALLENGE_CACHE"):
        datasets.load_split(
            datasets.get_dataset("digits"), "train", cache_dir=tmp_path / "file" / "cache"
        )


def test_disk_that_takes_no_more_leaves_nothing_behind(tmp_path):
    """A write the system refuses midway ends in StorageError and an empty cache."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The labels fit, the 249 kB of images do not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        with pytest.raises(StorageError, match="Free some space"):
            datasets.load_split(datasets.get_dataset("digits"), "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(tmp_path / "cache/digits") == []


# ---------------------------------------------------------------- list and verify


def test_availability_shows_what_is_there_and_what_is_wrong(cifar):
    """For `data list`: numbers of what is found, the reason where something is not usable."""
    found = datasets.availability(CIFAR, cifar)
    assert (found.path, found.form, found.problem) == (cifar / "cifar-100", "class folders", "")
    assert str(found.train) == "9 images: 3 of 4 training images a class"
    assert str(found.test) == "6 images: 2 test images a class"
    (cifar / "cifar-100/test" / min(IMAGES["test"])).unlink()
    found = datasets.availability(CIFAR, cifar)
    assert found.test is None
    assert "must have all 6 images, found 5" in found.problem
    missing = datasets.availability(TINY, cifar)
    assert missing.path is None
    assert "data fetch tinyimagenet" in missing.problem
    digits = datasets.availability(datasets.get_dataset("digits"), cifar)
    assert (digits.train.images, digits.test.images) == (1297, 500)


def test_verify_decodes_everything_and_reports_it(cifar):
    """A whole dataset passes with its numbers and digests; one damaged image fails it."""
    progress = []
    found = datasets.verify(CIFAR, cifar, lambda done, total: progress.append((done, total)))
    assert found.train.digest == datasets.load_split(CIFAR, "train", cifar).digest
    assert found.test.digest == datasets.load_split(CIFAR, "test", cifar).digest
    assert "3 of 4 training images a class" in str(found)
    assert progress[-1] == (15, 15)
    truncate(cifar / "cifar-100/train" / min(IMAGES["train"]))
    with pytest.raises(DataError, match="not a whole PNG"):
        datasets.verify(CIFAR, cifar)


def test_verify_checks_the_archive(tmp_path):
    """An archive with the right checksum is verified as such, a changed one is refused."""
    spec = write_archive(tmp_path / "cifar-100-python.tar.gz", official_files())
    assert datasets.verify(spec, tmp_path).check == "SHA-256 of the archive"
    flip_byte(tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(DataError, match="Expected SHA-256"):
        datasets.verify(spec, tmp_path)


# ---------------------------------------------------------------- real images


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    """One cache for all tests on real images, removed afterwards: it has 150 MB."""
    folder = tmp_path_factory.mktemp("real")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def real_data(real_cache, monkeypatch):
    """The folder with both real datasets."""
    if not REAL_DATA:
        pytest.skip("DDCHALLENGE_DATA names no folder with the real images")
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(real_cache))
    return Path(REAL_DATA)


@pytest.mark.parametrize("name", ["cifar100", "tinyimagenet"])
def test_real_test_sets_are_whole_and_look_as_they_should(real_data, name):
    """10 000 images, the same number in each class, and the colours the normalisation expects."""
    spec = datasets.get_dataset(name)
    test = datasets.load_split(spec, "test", real_data)
    assert test.data.images.shape == (10_000, 3, spec.image_size, spec.image_size)
    assert set(np.bincount(test.data.labels)) == {10_000 // spec.num_classes}
    mean = test.data.images[::7].mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, spec.mean, atol=0.015)
    if name == "cifar100":
        # Lossless: the same on every machine and from every form of the data.
        assert test.digest == "6699edee02ad48dff0fb39bb0ed6ec281ccda70056bcea2f032d14454535c217"


@pytest.mark.parametrize("name", ["cifar100", "tinyimagenet"])
def test_real_training_sets_are_counted(real_data, name):
    """However many training images there are, they are counted against the official 500."""
    spec = datasets.get_dataset(name)
    reader = locate.find(spec, real_data)
    found = datasets.availability(spec, real_data).train
    assert found is not None
    labels = reader.listed_labels("train")
    if labels is None:
        assert found.images == 500 * spec.num_classes
    else:
        counts = np.bincount(labels, minlength=spec.num_classes)
        assert found.images_per_class == (counts.min(), counts.max())
        if counts.max() == 100:
            assert f"{found}".endswith("100 of 500 training images a class")
