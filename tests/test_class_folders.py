"""``--dataset folder:PATH``: images of any size in class folders, from the disk to a score."""

from __future__ import annotations

import json
import os
import socket
import struct
import warnings
import zlib
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ddchallenge import datasets
from ddchallenge.bundle import read_bundle
from ddchallenge.datasets import images as image_files
from ddchallenge.datasets.class_folders import is_class_folders_name
from ddchallenge.datasets.files import read_bounded
from ddchallenge.errors import DataError, MissingDataError, RequestError, UnknownNameError
from ddchallenge.generator import find_submission, require_dataset
from ddchallenge.leaderboard import group_of_tests, read_result
from ddchallenge.rules import TRACKS
from ddchallenge.sampling.supervisor import SamplingOrder, sample

CLASSES = ("ant", "bee", "cow")
# The order of Gu et al., which is not that of the names.
IMAGEWOOF = (
    "n02096294", "n02093754", "n02111889", "n02088364", "n02086240",
    "n02089973", "n02087394", "n02115641", "n02099601", "n02105641",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDCHALLENGE_DATA", raising=False)


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise that is smooth enough for resizing to matter and for JPEG not to."""
    numbers = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = Image.fromarray(numbers).resize((width, height), Image.Resampling.BICUBIC)
    return image.convert(mode)


def make(root: Path, classes=CLASSES, *, size=(16, 16), train=3, test=2, test_folder="val") -> Path:
    """A small data set; every image differs, and the classes are made in no order."""
    for part, count in (("train", train), (test_folder, test)):
        for number, name in enumerate(reversed(classes)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                seed = 1000 * number + 10 * i + (part == "train")
                picture(seed, *size).save(root / part / name / f"{i}.png")
    return root


def opened(root: Path, image_size: int | None = None):
    return datasets.open_dataset(f"folder:{root}", image_size)


# ---------------------------------------------------------------- what is read


def test_images_of_one_size_come_as_they_are(tmp_path):
    """Squares of one size keep it and every bit, by class and then by file name; grey becomes RGB,
    files that are no images and hidden ones are left alone; the tests are those of val."""
    root = make(tmp_path / "Woof 2")
    picture(5, 16, 16, "L").save(root / "train/bee/a.JPG", format="JPEG", quality=100)
    (root / "train/bee/notes.txt").write_text("not an image")
    (root / "train/bee/.hidden.png").write_text("not an image")
    (root / "train/.git").mkdir()
    (root / "test/none-of-these").mkdir(parents=True)
    spec = opened(root)
    train, test = (datasets.load_split(spec, split) for split in ("train", "test"))

    assert (spec.image_size, spec.class_ids, spec.class_names) == (16, CLASSES, CLASSES)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)
    assert train.data.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert test.data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (train.images_per_class, train.official_images_per_class) == (3, 3)
    files = [root / "train" / name for name in (
        "ant/0.png", "ant/1.png", "ant/2.png", "bee/0.png", "bee/1.png", "bee/2.png", "bee/a.JPG",
    )]  # fmt: skip
    for image, file in zip(train.data.images[:7], files, strict=True):
        expected = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("side", [24, 40])
def test_other_sizes_become_squares_as_torchvision_makes_them(tmp_path, side):
    """Wide, tall, odd, larger, smaller, grey, CMYK and palette images: bit for bit what
    torchvision's Resize and CenterCrop give, which the published evaluation uses."""
    root = make(tmp_path / "set", size=(30, 30))
    sizes = [(61, 33), (33, 61), (40, 24), (24, 40), (25, 24), (7, 100), (30, 30), (300, 201)]
    modes = ["RGB", "L", "CMYK", "P", "1", "RGB", "RGB", "RGB"]
    for number, (size, mode) in enumerate(zip(sizes, modes, strict=True)):
        form = {"CMYK": "jpg"}.get(mode, "png")
        picture(number, *size, mode).save(root / "train" / "ant" / f"x{number}.{form}")
    spec = opened(root, side)
    assert spec.image_size == side
    images = datasets.load_split(spec, "train").data.images

    as_published = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])
    for image, file in zip(images, sorted((root / "train" / "ant").iterdir()), strict=False):
        expected = as_published(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("odd", [(16, 17), (20, 20)])
def test_images_that_are_not_alike_become_224_pixels(tmp_path, odd):
    """One image that is no square, or another size, in the last class of the test set decides."""
    root = make(tmp_path / "set")
    picture(0, *odd).save(root / "val" / "cow" / "9.png")
    spec = opened(root)
    assert spec.image_size == 224
    assert datasets.load_split(spec, "test").data.images.shape == (7, 3, 224, 224)


def test_imagewoof_has_the_published_order(tmp_path):
    """Its ten folders, and only they, are numbered as Gu et al. number them; known WordNet ids
    have names for people."""
    spec = opened(make(tmp_path / "woof", IMAGEWOOF))
    assert spec.class_ids == IMAGEWOOF
    assert spec.class_names[:3] == ("Australian terrier", "Border terrier", "Samoyed")
    assert opened(make(tmp_path / "nine", IMAGEWOOF[:9])).class_ids == tuple(sorted(IMAGEWOOF[:9]))
    mixed = opened(make(tmp_path / "mixed", ("n01443537", "n02096294", "zebra")))
    assert mixed.class_names == ("goldfish", "Australian terrier", "zebra")


def test_test_is_taken_where_there_is_no_val(tmp_path):
    """The layout of torchvision's class folders; with both, val it is."""
    spec = opened(make(tmp_path / "set", test_folder="test", test=1))
    assert spec.test_images == 3
    assert datasets.load_split(spec, "test").data.labels.tolist() == [0, 1, 2]


# ---------------------------------------------------------------- the name


def test_the_name_says_what_it_is_and_not_where(tmp_path):
    """Folder, size and classes make the name, so it is the same on another machine; another size
    or other classes are another data set."""
    here, there = make(tmp_path / "a" / "My Set.v2"), make(tmp_path / "b" / "My Set.v2", train=1)
    name = opened(here).name
    assert name == opened(there).name
    assert name.startswith("my-set-v2-16px-")
    assert is_class_folders_name(name)
    assert not any(is_class_folders_name(builtin) for builtin in datasets.DATASETS)
    assert opened(here, 32).name == name.replace("16px", "32px")
    other = opened(make(tmp_path / "c" / "My Set.v2", ("ant", "bee", "dog"))).name
    assert other[:-6] == name[:-6]
    assert other != name
    assert opened(make(tmp_path / "ünïcode" / "犬")).name.startswith("images-16px-")


def test_a_path_may_be_relative_or_in_the_home_folder(tmp_path, monkeypatch):
    """A dot, a tilde and a final slash all mean the same folder."""
    root = make(tmp_path / "set")
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = {datasets.open_dataset(f"folder:{path}") for path in (".", "~/set", "../set/", root)}
    assert len(found) == 1
    assert found.pop().folder == root


# ---------------------------------------------------------------- the cache


def test_a_split_is_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    """The cache is used as for every data set: same digest, no image opened; an image that was
    exchanged is seen; another size is another entry."""
    root = make(tmp_path / "set")
    first = datasets.load_split(opened(root), "train")
    digest = first.digest
    spec = opened(root)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        assert datasets.load_split(spec, "train").digest == digest
    os.utime(root / "train/ant/0.png", ns=(0, 0))
    assert datasets.load_split(opened(root), "train").digest == digest
    picture(77, 16, 16).save(root / "train/ant/0.png")
    assert datasets.load_split(opened(root), "train").digest != digest
    assert datasets.load_split(opened(root, 8), "train").data.images.shape[2] == 8


def uncompressed(root: Path, seed: int) -> None:
    """Give every image other pixels: as many bytes whatever they show, and the same old mtime."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        before = path.stat().st_ctime_ns
        picture(seed + number, 16, 16).save(path, compress_level=0)
        os.utime(path, ns=(0, 0))
        # The clock of a file system ticks every few milliseconds.
        while path.stat().st_ctime_ns == before:
            os.utime(path, ns=(0, 0))


def assert_is_loaded(root: Path) -> None:
    """What ``load_split`` gives is what lies there now."""
    spec = opened(root)
    for split, part in (("train", "train"), ("test", "val")):
        images = datasets.load_split(spec, split).data.images
        for image, file in zip(images, sorted((root / part).rglob("*.png")), strict=True):
            np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(Image.open(file)))


def test_folders_that_only_differ_in_their_pixels_are_told_apart(tmp_path):
    """Two places with the same folder name, classes, file names, sizes and mtimes, as an archive
    without times leaves them, do not share an entry; the same place through a link does."""
    here, there = (make(tmp_path / place / "set") for place in ("here", "there"))
    uncompressed(here, 0)
    uncompressed(there, 500)
    assert [(p.stat().st_size, p.stat().st_mtime) for p in sorted(here.rglob("*.png"))] == [
        (p.stat().st_size, p.stat().st_mtime) for p in sorted(there.rglob("*.png"))
    ]
    assert opened(here).name == opened(there).name
    for root in (here, there, here):
        assert_is_loaded(root)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    entries = {
        datasets.load_split(opened(root), "train").folder for root in (here, tmp_path / "link/set")
    }
    assert len(entries) == 1


def test_the_place_alone_tells_folders_apart(tmp_path, monkeypatch):
    """Also where a file system says the same of both to the last nanosecond."""
    here, there = (make(tmp_path / place / "set") for place in ("here", "there"))
    listed = image_files.ImageFile
    monkeypatch.setattr(image_files, "ImageFile", lambda name, label, *_: listed(name, label))
    uncompressed(here, 0)
    uncompressed(there, 500)
    for root in (here, there):
        assert_is_loaded(root)


def test_images_that_were_replaced_in_place_are_seen(tmp_path):
    """Other pixels at the same place, in files of the same size that say they are as old."""
    root = make(tmp_path / "set")
    uncompressed(root, 0)
    assert_is_loaded(root)
    uncompressed(root, 500)
    assert_is_loaded(root)


def test_it_is_verified_to_the_last_image(tmp_path):
    """`data verify` counts, digests and names; a file that is cut off is named."""
    root = make(tmp_path / "set")
    spec = opened(root)
    verified = datasets.verify(spec)
    assert verified.train.digest == datasets.load_split(spec, "train").digest
    assert str(verified).startswith(f"{spec.name}: {root} (class folders)\n  train  9 images: 3 tr")
    path = root / "val/cow/1.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"val/cow/1\.png is not a whole PNG or JPEG image"):
        datasets.verify(spec)


# ---------------------------------------------------------------- bad input


def without(path):
    def change(root):
        (root / path).rename(root.parent / "away")

    return change


def emptied(path):
    def change(root):
        for file in (root / path).iterdir():
            file.unlink()

    return change


def replaced(path, content):
    def change(root):
        (root / path).write_bytes(content)

    return change


def drawn(path, *size, mode="RGB"):
    def change(root):
        picture(1, *size, mode).save(root / path)

    return change


def headed(path, width, height):
    """A PNG whose header says this size; of the pixels there is not one."""

    def chunk(name, content):
        end = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + end

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return replaced(path, b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def linked(path, target):
    def change(root):
        (root.parent / "elsewhere").mkdir()
        picture(1, 16, 16).save(root.parent / "elsewhere" / "x.png")
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).symlink_to(target)

    return change


def piped(path):
    def change(root):
        os.mkfifo(root / path)

    return change


def bound(path):
    def change(root):
        # A socket's path may have about a hundred bytes: name it from where it lies.
        with socket.socket(socket.AF_UNIX) as listener, chdir((root / path).parent):
            listener.bind(Path(path).name)

    return change


def foldered(path):
    def change(root):
        (root / path).mkdir()

    return change


def pipe_linked(root):
    os.mkfifo(root / "pipe")
    (root / "train/bee/x.png").symlink_to("../../pipe")


def one_class(root):
    for name in ("bee", "cow"):
        for part in ("train", "val"):
            (root / part / name).rename(root.parent / f"{part}-{name}")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without("train"), MissingDataError, r"it has no folder train\.\nExpected train/<class>"),
        (without("val"), MissingDataError, "it has no folder val or test"),
        (without("val/bee"), DataError, r"train/ has 'bee', val/ has not\.\nEvery class must"),
        (without("train/bee"), DataError, "val/ has 'bee', train/ has not"),
        (emptied("train/bee"), DataError, r"class 'bee' has no image in train/bee/\.\n.*\.png"),
        (emptied("val/bee"), DataError, "class 'bee' has no image in val/bee/"),
        (one_class, DataError, "at least two classes in train/, found 1"),
        (replaced("val/bee/1.png", b"GIF89a"), DataError, r"val/bee/1\.png is not a whole PNG"),
        (replaced("val/bee/1.png", b""), DataError, r"val/bee/1\.png is not a whole PNG"),
        (drawn("train/bee/1.png", 16, 16, mode="RGBA"), DataError, "up to 80,000,000 .* mode RGBA"),
        (
            drawn("train/bee/1.png", 100_000, 1),
            DataError,
            r"bee/1\.png: the longer side .* up to 1,594 times the shorter one, which becomes 224 "
            r"pixels; found 100000×1\.",
        ),
        (drawn("train/bee/1.png", 1, 1595), DataError, "found 1×1595"),
        (
            headed("train/bee/1.png", 9500, 9500),
            DataError,
            r"bee/1\.png: expected up to 80,000,000 pixels, grey or RGB, found 9500×9500",
        ),
        (headed("val/bee/1.png", 60_000, 60_000), DataError, "larger than any photo.*3600000000 "),
        (linked("train/bee/x.png", "../../../elsewhere/x.png"), DataError, "is a link out of"),
        (linked("train/dog", "../../elsewhere"), DataError, r"train/dog is a link out of .*\nPut"),
        (linked("train/bee/x.png", "nowhere.png"), DataError, "No such file"),
        (linked("train/bee/x.png", "x.png"), DataError, "Too many levels of symbolic links"),
        (piped("train/bee/x.png"), DataError, r"bee/x\.png .*expected a file, found a pipe"),
        (piped("val/bee/x.JPEG"), DataError, r"bee/x\.JPEG .*expected a file, found a pipe"),
        (pipe_linked, DataError, r"bee/x\.png .*expected a file, found a pipe"),
        (bound("val/bee/x.png"), DataError, r"bee/x\.png .*expected a file, found .*a socket"),
        (foldered("val/bee/x.png"), DataError, r"bee/x\.png .*expected a file, found a folder"),
    ],
)
def test_bad_class_folders_are_named(tmp_path, change, error, message):
    """What is wrong, where, and what was expected, before or while the images are decoded."""
    root = make(tmp_path / "set")
    change(root)
    with pytest.raises(error, match=message):
        datasets.verify(opened(root))


def test_the_longest_image_that_is_taken(tmp_path):
    """1594 times as long as it is wide becomes a square of 224 pixels."""
    root = make(tmp_path / "set")
    drawn("val/bee/1.png", 1, 1594)(root)
    assert datasets.load_split(opened(root), "test").data.images.shape == (6, 3, 224, 224)


def test_large_images_are_refused_without_a_warning(tmp_path):
    """Pillow's own warning is nowhere, neither while headers are read (first of all images, so that
    it is one) nor while images are decoded; and it is on again for everyone else."""
    root = make(tmp_path / "set")
    headed("train/ant/0.png", 9500, 9500)(root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec = opened(root)
        with pytest.raises(DataError, match="found 9500×9500"):
            datasets.load_split(spec, "train")
        assert not caught
        Image.open(root / "train/ant/0.png").close()
    assert [warning.category for warning in caught] == [Image.DecompressionBombWarning]


def test_a_split_that_is_a_link_elsewhere_is_refused(tmp_path):
    """The whole of val outside the folder: the data set would not be one folder."""
    root = make(tmp_path / "set")
    (root / "val").rename(tmp_path / "val")
    (root / "val").symlink_to(tmp_path / "val")
    with pytest.raises(DataError, match="val is a link out of"):
        opened(root)


def test_what_is_no_file_matters_only_under_the_name_of_an_image(tmp_path):
    """A pipe, a folder or a hidden pipe beside the images is left alone and never opened; one that
    takes the place of an image after the listing is refused as well."""
    root = make(tmp_path / "set")
    os.mkfifo(root / "train/ant/pipe")
    os.mkfifo(root / "train/ant/.hidden.png")
    (root / "train/ant/more").mkdir()
    spec = opened(root)
    assert len(datasets.load_split(spec, "train").data) == 9
    (root / "val/ant/0.png").unlink()
    os.mkfifo(root / "val/ant/0.png")
    with pytest.raises(DataError, match=r"ant/0\.png .*found a pipe"):
        datasets.load_split(spec, "test")
    with pytest.raises(DataError, match=r"ant/0\.png .*found a pipe"):
        read_bounded(root / "val/ant/0.png", 1)


def test_links_inside_the_folder_are_followed(tmp_path):
    """A folder that is reached through a link itself, and links within it, are fine."""
    root = make(tmp_path / "set")
    (root / "train/ant/again.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(root)
    spec = opened(tmp_path / "link")
    assert spec.name.startswith("link-16px-")
    images = datasets.load_split(spec, "train").data.images
    assert len(images) == 10
    np.testing.assert_array_equal(images[0], images[3])


def test_wrong_references_say_what_is_expected(tmp_path):
    """No path, a file, a misspelt prefix, a size for a data set that has its own, and a name that
    does not say where the folders are."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="Expected a path after folder:"):
        datasets.open_dataset("folder:")
    with pytest.raises(MissingDataError, match="that is a file"):
        opened(tmp_path / "file")
    with pytest.raises(MissingDataError, match="there is no such folder"):
        opened(tmp_path / "nothing")
    with pytest.raises(UnknownNameError, match="Did you mean 'folder:PATH'"):
        datasets.open_dataset("folders:x")
    with pytest.raises(RequestError, match=r"digits have 8 pixels, not 16\.\n--image-size is for"):
        datasets.open_dataset("digits", 16)
    with pytest.raises(RequestError, match=r"say where they are\.\nAdd --dataset folder:PATH"):
        datasets.get_dataset("woof-224px-0123ab")


# ---------------------------------------------------------------- sampling and scoring


def order_of(spec, submission, training=None):
    return SamplingOrder(
        submission=submission,
        dataset=spec,
        rules=TRACKS["generative"],
        budget_seconds=60.0,
        device="cpu",
        run_seed=0,
        max_images=6,
        augmentation="none",
        training_data=training,
    )


def test_a_generator_is_told_all_but_the_place(tmp_path, make_submission):
    """The worker has the same classes, size and statistics, however long the names are, and no
    path of the folder the test images lie in."""
    classes = [f"{number:03}" + "-name" * 40 for number in range(300)]
    spec = opened(make(tmp_path / "secret-place", classes, train=1, test=1))
    entry = make_submission(
        """
        import numpy as np
        class G:
            def setup(self, task):
                self.size = task.dataset.image_size
                print(repr(task.dataset), flush=True)
            def generate(self, labels, seed):
                return np.full((len(labels), 3, self.size, self.size), 7, np.uint8)
        """,
        datasets='["folder"]',
    )
    out = tmp_path / "out"
    sampled = sample(order_of(spec, entry), out)
    sampled.spool.close()
    assert sampled.data.images.shape == (6, 3, 16, 16)
    log = (out / "worker.log").read_text()
    assert "folder=None" in log
    assert classes[-1] in log
    assert f"mean={spec.mean}" in log
    assert str(spec.folder) not in log


def test_a_submission_says_that_it_takes_class_folders(tmp_path, make_submission):
    """ "folder" among its datasets; one made for digits is refused."""
    spec = opened(make(tmp_path / "set"))
    require_dataset(find_submission("gaussian"), spec)
    with pytest.raises(RequestError, match="is made for digits, not for class folders"):
        require_dataset(make_submission("class G: ..."), spec)


def test_from_class_folders_to_a_result(ddchallenge, tmp_path):
    """run, score, export and import with both baselines; halves give what the whole gives, and no
    file says where the images lay."""
    root = make(tmp_path / "hidden" / "set", train=12, test=2)
    data = ["--dataset", f"folder:{root}"]
    quick = ["--epochs", "0", "--seeds", "0"]
    whole = ["run", "--track", "generative", *data, *quick, "--max-images", "9"]
    for baseline in ("gaussian", "real_subset"):
        out = tmp_path / baseline
        status, _, err = ddchallenge(*whole, "--submission", baseline, "--out", out)
        assert status == 0, err
        half = ["score", out, *data, *quick, "--out", tmp_path / f"{baseline}-half"]
        assert ddchallenge(*half)[0] == 0
        results = [
            json.loads((tmp_path / name / "result.json").read_text())
            for name in (baseline, f"{baseline}-half")
        ]
        assert results[0]["dataset"].startswith("set-16px-")
        assert results[0]["runs"][0]["correct"] == results[1]["runs"][0]["correct"]
        for file in ("result.json", "bundle/manifest.json"):
            assert "hidden" not in (out / file).read_text()

    bundle, files = tmp_path / "gaussian" / "bundle", tmp_path / "files"
    assert ddchallenge("export", bundle, *data, "--out", files)[0] == 0
    name = read_bundle(bundle, opened(root)).manifest.dataset
    status, out, err = ddchallenge(
        "import", files / f"{name}.pt", *data, "--out", tmp_path / "again", "--json"
    )
    assert status == 0, err
    digests = {read_bundle(b, opened(root)).manifest.digest for b in (bundle, tmp_path / "again")}
    assert len(digests) == 1
    assert json.loads(out)["manifest"]["normalisation"] == "official"
    images = torch.load(files / f"{name}.pt", weights_only=True)
    assert images.shape == (9, 3, 16, 16)


def test_a_bundle_for_other_class_folders_is_refused(ddchallenge, tmp_path):
    """Without the folders, with another size, with other classes, under another name: status 2
    and what to do about it; the right ones are found again."""
    root = make(tmp_path / "set")
    data = f"folder:{root}"
    sampled = ddchallenge("sample", "--dataset", data, "--max-images", "3", "--out", tmp_path / "o")
    assert sampled[0] == 0, sampled[2]
    fewer = make(tmp_path / "fewer" / "set", ("ant", "bee"))
    renamed = make(tmp_path / "renamed")
    for options, message in [
        ([], "say where they are"),
        (["--image-size", "32"], "--image-size goes with --dataset folder:PATH"),
        (["--dataset", data, "--image-size", "32"], "give --image-size 16"),
        (["--dataset", f"folder:{fewer}"], "are others than those it was made for"),
        (["--dataset", f"folder:{renamed}"], "the name set, or make a link"),
        (["--dataset", "digits"], "Give the --dataset it was made for"),
    ]:
        status, out, err = ddchallenge("score", tmp_path / "o", *options)
        assert (status, out) == (2, "")
        assert message in " ".join(err.split())
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "set").symlink_to(renamed)
    moved = ["--dataset", f"folder:{tmp_path / 'x' / 'set'}", "--epochs", "0", "--seeds", "0"]
    assert ddchallenge("score", tmp_path / "o", *moved)[0] == 0


def test_a_class_is_scored_by_one_test_image_and_not_without(ddchallenge, tmp_path):
    """One test image a class is enough for the accuracy of every class; where the last one of a
    class went, hidden files and other files being none, it is refused with its name."""
    root = make(tmp_path / "set", test=1)
    data, out = ["--dataset", f"folder:{root}"], tmp_path / "o"
    quick = ["--epochs", "0", "--seeds", "0"]
    status, _, err = ddchallenge(
        "run", "--track", "generative", *data, *quick, "--max-images", "3", "--out", out
    )
    assert status == 0, err
    shares = json.loads((out / "result.json").read_text())["per_class"]
    assert len(shares) == 3
    assert set(shares) <= {0.0, 1.0}

    before = sorted(path.name for path in out.iterdir())
    folder = root / "val/bee"
    (folder / "0.png").rename(folder / ".0.png")
    (folder / "0.webp").write_bytes(b"")
    status, stdout, err = ddchallenge("score", out, *data, *quick)
    assert (status, stdout) == (1, "")
    assert "class 'bee' has no image in val/bee/." in " ".join(err.split())
    assert sorted(path.name for path in out.iterdir()) == before


def test_an_interrupted_score_says_the_whole_command(ddchallenge, tmp_path, monkeypatch):
    """Ctrl-C while scoring: what to type again names the folders and the size."""
    root = make(tmp_path / "a set")
    out = tmp_path / "o"
    data = ["--dataset", f"folder:{root}"]
    assert ddchallenge("sample", *data, "--max-images", "3", "--out", out)[0] == 0

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddchallenge.pipeline.score", interrupt)
    status, _, err = ddchallenge("score", out, *data)
    assert status == 1
    assert f"--dataset 'folder:{root}' --image-size 16" in err


def test_data_commands_take_class_folders(ddchallenge, tmp_path):
    """verify and fetch by reference, and the leaderboard by name."""
    root = make(tmp_path / "set")
    status, out, _ = ddchallenge("data", "verify", f"folder:{root}", "--image-size", "8", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["dataset"].startswith("set-8px-")
    assert document["train"]["images"] == 9
    assert "nothing to download" in ddchallenge("data", "fetch", f"folder:{root}")[1]
    assert ddchallenge("data", "verify", f"folder:{root}/train")[0] == 2


def test_two_peoples_folders_of_one_name_are_two_tables(ddchallenge, tmp_path, monkeypatch):
    """Same name, size and classes, but other test images: nobody is ranked against the other, and
    the headings tell them apart; digits, known by name, is one table whoever scored it."""
    monkeypatch.chdir(tmp_path)
    folders = [make(tmp_path / str(test) / "set", test=test) for test in (2, 3)]
    names = set()
    for number, root in enumerate(folders):
        data, out = ["--dataset", f"folder:{root}"], tmp_path / f"o{number}"
        quick = ["--epochs", "0", "--seeds", "0", "--max-images", "3", "--out", out]
        status, _, err = ddchallenge("run", "--track", "generative", *data, *quick)
        assert status == 0, err
        names.add(read_result(out / "result.json").dataset)
    assert len(names) == 1
    (name,) = names
    status, out, _ = ddchallenge("leaderboard", "--results", ".", "--dataset", name, "--markdown")
    assert status == 0
    headings = [line for line in out.splitlines() if line.startswith(f"**{name} (test images ")]
    assert len(set(headings)) == 2

    digits = [replace(read_result(tmp_path / "o0" / "result.json"), dataset="digits")]
    other = replace(digits[0].provenance, test_digest="0" * 64)
    digits.append(replace(digits[0], provenance=other))
    assert {group_of_tests(result) for result in digits} == {""}
