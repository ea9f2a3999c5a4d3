"""Bundles: written whole, read as a stranger's, one digest for both forms."""

import hashlib
import json
import os
import resource
import struct
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from fake_data import SHAPES as SPEC

from ddchallenge.bundle import read_bundle, tensor_digest, write_bundle
from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import BundleError, OutputError, RequestError, StorageError
from ddchallenge.records import (
    BatchRecord,
    Environment,
    LabeledImages,
    Manifest,
    PhaseSeconds,
    SamplingLog,
    SubmissionIdentity,
)

LOG = SamplingLog(
    rules_id="eccv2024-generative-1",
    budget_seconds=1.0,
    elapsed_seconds=0.75,
    stop="deadline",
    stop_detail="",
    run_seed=0,
    device="cpu",
    max_images=None,
    augmentation="none",
    images_sampled=7,
    images_augmented=0,
    late_images=2,
    seconds=PhaseSeconds(load=0.25, sampling=0.5),
    augmentation_worker_seconds=0.0,
    augmented_ranges=(),
    batches=(),
)


def log_of(count):
    """A log that accounts for ``count`` images."""
    line = BatchRecord(index=0, batches=1, seed=7, first=0, count=count, received_seconds=0.5)
    return replace(LOG, images_sampled=count, batches=(line,) if count else ())


def images(count=7, dtype="uint8", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 3
    return LabeledImages(pixels if dtype == "uint8" else normalise(SPEC, pixels), labels)


def manifest(data, **changes):
    made = Manifest(
        schema=2,
        track="generative",
        dataset="shapes",
        digest=tensor_digest(SPEC, data),
        dtype=data.images.dtype.name,
        images=len(data),
        images_per_class=data.images_per_class(3),
        normalisation="pixels" if data.images.dtype == np.uint8 else "official",
        submission=SubmissionIdentity(name="me", digest="0" * 64),
        ranked=True,
        contains_real_images=False,
        training_images_per_class=None,
        training_digest=None,
        origin=None,
        sampling=log_of(len(data)),
        launch=None,
        recovered=False,
        environment=Environment(
            version="0", commit=None, dirty=None, python="3", torch="2", platform="p",
            device="cpu", hardware="h",
        ),
    )  # fmt: skip
    return replace(made, **changes)


LIMITS = {
    "memory_bytes": 1 << 30, "processes": 9, "open_files": 9, "disk_bytes": 9, "cpus": None,
}  # fmt: skip
BOX = {
    "launcher": "process", "engine": None, "image": None, "limits": LIMITS, "environment": ["PATH"],
    "landlock": 7, "sandbox": ["network: none"],
}  # fmt: skip
SHEET = PIL.Image.new("RGB", (4, 4), "white")


@pytest.fixture
def bundle(tmp_path):
    data = images()
    return write_bundle(tmp_path / "b", data, manifest(data), SHEET)


def edit(bundle, **changes):
    """Change fields of manifest.json; ``...`` removes one."""
    path = bundle.folder / "manifest.json"
    document = json.loads(path.read_text())
    for name, value in changes.items():
        if value is ...:
            del document[name]
        else:
            document[name] = value
    path.write_text(json.dumps(document))


# ----------------------------------------------------------------------------------------- digests


def test_digest_is_sha256_of_what_the_evaluator_trains_on():
    """The digest equals SHA-256 over bytes written out here by struct, value after value."""
    data = images(5)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (SPEC.mean, SPEC.std))
    values = (data.images.astype(np.float32) / np.float32(255) - mean) / std
    content = b"ddchallenge tensors 1\n" + struct.pack("<4Q", 5, 3, 8, 8)
    content += struct.pack("<5q", *data.labels.tolist())
    content += struct.pack(f"<{values.size}f", *values.ravel().tolist())
    assert tensor_digest(SPEC, data) == hashlib.sha256(content).hexdigest()


def test_both_forms_have_one_digest_and_any_change_another(monkeypatch):
    """Pixels and their normalised floats agree, in chunks of any size; one pixel, label or swap
    makes a difference."""
    data = images(50)
    digest = tensor_digest(SPEC, data)
    monkeypatch.setattr("ddchallenge.bundle._CHUNK_BYTES", 3000)
    assert tensor_digest(SPEC, data) == digest
    assert tensor_digest(SPEC, LabeledImages(normalise(SPEC, data.images), data.labels)) == digest
    pixel = data.images.copy()
    pixel[7, 1, 2, 3] ^= 1
    others = [
        LabeledImages(pixel, data.labels),
        LabeledImages(data.images, np.roll(data.labels, 1)),
        LabeledImages(data.images[::-1].copy(), data.labels),
        LabeledImages(data.images[:49], data.labels[:49]),
    ]
    assert len({digest, *(tensor_digest(SPEC, other) for other in others)}) == 5


# ----------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_bundle_comes_back_equal(tmp_path, dtype):
    """Tensors bit for bit and the manifest record for record; safetensors itself reads the file."""
    data = images(dtype=dtype)
    written = write_bundle(tmp_path / "new" / "b", data, manifest(data), SHEET)
    read = read_bundle(tmp_path / "new" / "b", SPEC)
    assert read.manifest == written.manifest
    assert read.data.images.dtype == dtype
    np.testing.assert_array_equal(read.data.images, data.images)
    np.testing.assert_array_equal(read.data.labels, data.labels)
    theirs = safetensors.numpy.load_file(tmp_path / "new" / "b" / "images.safetensors")
    np.testing.assert_array_equal(theirs["images"], data.images)
    names = sorted(path.name for path in (tmp_path / "new" / "b").iterdir())
    assert names == ["images.safetensors", "manifest.json", "samples.png"]


def test_a_file_written_by_safetensors_is_read(bundle):
    """The form is the public one: a file another tool wrote is as good."""
    path = bundle.folder / "images.safetensors"
    tensors = {"labels": bundle.data.labels, "images": bundle.data.images}
    safetensors.numpy.save_file(tensors, path, metadata={"by": "another"})
    assert read_bundle(bundle.folder, SPEC).manifest == bundle.manifest


def test_the_folder_is_never_written_over(bundle):
    """An existing target is an OutputError and stays as it was."""
    data = images(seed=1)
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(bundle.folder, data, manifest(data), SHEET)
    np.testing.assert_array_equal(read_bundle(bundle.folder, SPEC).data.images, bundle.data.images)


def test_a_full_disk_leaves_nothing(tmp_path):
    """When the kernel refuses more bytes it is a StorageError and the folder is as before."""
    data = images(400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="no room"):
            write_bundle(tmp_path / "b", data, manifest(data), SHEET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_disagrees_is_not_written(tmp_path):
    """Counts, dtype and emptiness are checked before anything is on disk."""
    data = images()
    for wrong in ({"images": 8}, {"dtype": "float32"}, {"normalisation": "official"}):
        with pytest.raises(BundleError):
            write_bundle(tmp_path / "b", data, manifest(data, **wrong), SHEET)
    empty = LabeledImages(data.images[:0], data.labels[:0])
    with pytest.raises(BundleError, match="no images"):
        write_bundle(tmp_path / "b", empty, manifest(data, images=0), SHEET)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 6}, r"expected images U8 \[6, 3, 8, 8\], found U8 \[7, 3, 8, 8\]"),
        ({"images": 10**12}, r"expected images U8 \[1000000000000, 3, 8, 8\]"),
        ({"dtype": "float32"}, r"expected images F32 .* found U8"),
        ({"images_per_class": [2, 2]}, "says 2 to 2 images a class, the labels say 2 to 3"),
        ({"normalisation": "official"}, "uint8 images with normalisation 'official'"),
        ({"digest": "0" * 64}, "digest '0000000000000000'... is not that of the tensors"),
        ({"schema": 1}, "manifest is of schema 1, this version reads 2"),
        ({"schema": True}, "schema: expected a whole number, found true"),
        ({"ranked": ...}, "manifest.json: ranked is missing"),
        ({"sampling": {"stop": "tired"}}, r"sampling\.rules_id, sampling\.budget_seconds, .* are"),
        ({"extra": 1}, "manifest.json: extra is not known here"),
        ({"launch": {"launcher": "boat"}}, r"launch\.engine, .* are missing"),
        ({"launch": BOX | {"launcher": "boat"}}, "expected one of 'process', 'container'"),
        ({"launch": BOX | {"sandbox": ["x"] * 1001}}, "launch: more than 1000 lines"),
        ({"launch": BOX | {"limits": LIMITS | {"processes": -1}}}, "no machine has these"),
        ({"launch": BOX, "sampling": None}, "nothing was sampled, so nothing was launched"),
        ({"recovered": 1}, "recovered: expected true or false, found 1"),
    ],
)
def test_a_manifest_that_disagrees_is_refused(bundle, changes, message):
    """Every claim of the manifest is held against the tensors, and what differs is named."""
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.folder, SPEC)


def test_a_bundle_for_another_dataset_is_not_called_damaged(bundle):
    """It is whole, so the request is at fault: what was expected, found, and to be done."""
    edit(bundle, dataset="cifar100")
    with pytest.raises(RequestError, match="for shapes, found one for cifar100") as caught:
        read_bundle(bundle.folder, SPEC)
    assert not isinstance(caught.value, BundleError)
    assert "damaged" not in str(caught.value)


def test_the_path_of_a_wrong_value_is_named(bundle):
    """A wrong type deep in the sampling log is pointed at, not just "invalid"."""
    log = json.loads((bundle.folder / "manifest.json").read_text())["sampling"]
    log["seconds"]["load"] = "long"
    edit(bundle, sampling=log)
    with pytest.raises(BundleError, match=r'sampling\.seconds\.load: expected a number, found "lo'):
        read_bundle(bundle.folder, SPEC)


def test_one_changed_pixel_is_noticed(bundle):
    """The digest is computed again from the tensors, so no bit can change unseen."""
    path = bundle.folder / "images.safetensors"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is not that of the tensors"):
        read_bundle(bundle.folder, SPEC)


def tensors_with(**changes):
    data = images()
    tensors = {"images": data.images, "labels": data.labels} | changes
    return safetensors.numpy.save({name: t for name, t in tensors.items() if t is not None})


def lying_header(claimed):
    header = {
        "images": {"dtype": "U8", "shape": claimed, "data_offsets": [0, int(np.prod(claimed))]},
        "labels": {"dtype": "I64", "shape": [7], "data_offsets": [int(np.prod(claimed))] * 2},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(2000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a valid safetensors file"),
        (b"\xff" * 100, "not a valid safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "not a valid safetensors file"),
        (tensors_with()[:-1], "not a valid safetensors file"),
        (tensors_with() + b"x", "not a valid safetensors file"),
        (lying_header([7 * 10**9, 3, 8, 8]), "not a valid safetensors file"),
        (tensors_with(labels=None), "expected tensors images and labels, found images"),
        (tensors_with(extra=np.zeros(1)), "found extra, images, labels"),
        (tensors_with(labels=np.zeros(7, np.int32)), r"expected labels I64 \[7\], found I32"),
        (tensors_with(labels=np.zeros((7, 1), np.int64)), r"found I64 \[7, 1\]"),
        (tensors_with(images=np.zeros((7, 8, 8, 3), np.uint8)), r"found U8 \[7, 8, 8, 3\]"),
        (tensors_with(labels=np.full(7, -1)), "labels from 0, found -1"),
        (tensors_with(labels=np.full(7, 3)), "label 3 is none of the 3 classes of shapes"),
    ],
)
def test_tensors_that_are_not_what_they_claim_are_refused(bundle, content, message):
    """Cut, padded, lying and misshapen files name their fault; nothing large is allocated."""
    (bundle.folder / "images.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.folder, SPEC)


def test_nan_in_a_float_bundle_is_refused(tmp_path):
    """A NaN put into the file is found, with the number of its image."""
    data = images(dtype="float32")
    folder = write_bundle(tmp_path / "b", data, manifest(data), SHEET).folder
    data.images[4, 0, 0, 0] = np.nan
    tensors = {"images": data.images, "labels": data.labels}
    safetensors.numpy.save_file(tensors, folder / "images.safetensors")
    with pytest.raises(BundleError, match="Image 4 holds NaN"):
        read_bundle(folder, SPEC)


@pytest.mark.parametrize("name", ["images.safetensors", "manifest.json"])
def test_links_pipes_and_missing_files_are_refused(bundle, tmp_path, name):
    """A bundle's files are plain files: a link out of the folder or a pipe is not followed."""
    path = bundle.folder / name
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} cannot be read"):
        read_bundle(bundle.folder, SPEC)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is not a plain file"):
        read_bundle(bundle.folder, SPEC)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match=f"{name} is not a plain file"):
        read_bundle(bundle.folder, SPEC)


def test_no_bundle_there_says_what_one_is(tmp_path):
    """A path without a bundle is answered with what was expected."""
    with pytest.raises(BundleError, match=r"There is no bundle at .*\n.*manifest.json"):
        read_bundle(tmp_path / "nothing")


def test_a_manifest_for_an_unknown_dataset_is_refused(bundle):
    """Without a spec the manifest's dataset is looked up, and a name in no table is an error."""
    with pytest.raises(BundleError, match="No dataset is called 'shapes'"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_sampled": 5}, "batches do not add up"),
        ({"images_augmented": 10**6}, "augmented_ranges do not add up"),
        (
            {"images_augmented": 8, "augmentation": "pda5", "augmented_ranges": [[0, 2]]},
            "to images",
        ),
        ({"augmented_ranges": [[5, 1]]}, "5 to 1 cannot be"),
        ({"augmentation": "nonsense"}, "augmentation is no plan"),
        ({"late_images": -5}, "late_images is negative"),
        ({"elapsed_seconds": -1}, "seconds do not add up"),
        ({"budget_seconds": 0}, "budget_seconds is not positive"),
        ({"rules_id": "mine"}, "rules_id is unknown"),
        ({"batches": []}, "batches do not add up"),
    ],
)
def test_a_log_that_does_not_account_for_the_images_is_refused(bundle, changes, message):
    """Every number of the log is held against the others and against the tensors."""
    log = json.loads((bundle.folder / "manifest.json").read_text())["sampling"]
    edit(bundle, sampling=log | changes)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.folder, SPEC)


def test_a_bundle_of_another_track_is_refused(bundle):
    """A generative bundle does not become a fixed-ipc one by a word in its manifest."""
    edit(bundle, track="fixed-ipc", sampling=None)
    with pytest.raises(BundleError, match="takes 10 images a class"):
        read_bundle(bundle.folder, SPEC)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(bundle):
    """A terabyte of nothing behind a valid header: sizes are compared with the memory there is."""
    count = 2**32
    edit(bundle, images=count)
    size = count * 3 * 8 * 8
    header = json.dumps(
        {
            "images": {"dtype": "U8", "shape": [count, 3, 8, 8], "data_offsets": [0, size]},
            "labels": {"dtype": "I64", "shape": [count], "data_offsets": [size, size + 8 * count]},
        }
    ).encode()
    with (bundle.folder / "images.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size + 8 * count)
    with pytest.raises(BundleError, match="GB of memory"):
        read_bundle(bundle.folder, SPEC)
