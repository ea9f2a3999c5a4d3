"""Official tensor files: in and out bit for bit, recognised, and never executed."""

import io
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ddchallenge.bundle import tensor_digest
from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import BundleError, OutputError, StorageError
from ddchallenge.official import displayable, export_official, import_official
from ddchallenge.records import Bundle, DatasetSpec, LabeledImages

SPEC = DatasetSpec(
    name="cifar100",
    class_ids=tuple("abcd"),
    class_names=("ant", "bee", "cat", "dog"),
    image_size=8,
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    training_images_per_class=10,
    test_images=9,
)
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
LABELS = np.repeat(np.arange(4), 3)


def column(values):
    return torch.tensor(values)[:, None, None]


def saved(folder, content, name="images.pt"):
    torch.save(content, folder / name)
    return folder / name


def bundle_of(images, labels):
    return Bundle(Path("unused"), LabeledImages(images, labels), None)


# -------------------------------------------------------------------------------------- in and out


def test_import_then_export_is_the_same_tensor(tmp_path):
    """An official float32 file comes out with every bit as it went in, and with its digest."""
    tensor = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tensor[0, 0, 0, :3] = torch.tensor([-0.0, 1e-42, 3.4e38])  # bits that arithmetic would lose
    imported = import_official(saved(tmp_path, tensor), SPEC)
    assert imported.data.labels.tolist() == LABELS.tolist()
    exported = export_official(
        bundle_of(imported.data.images, imported.data.labels), SPEC, tmp_path / "out"
    )
    again = torch.load(exported.path, weights_only=True)
    assert exported.path == tmp_path / "out" / "cifar100.pt"
    assert again.dtype == torch.float32
    assert torch.equal(again.view(torch.int32), tensor.view(torch.int32))
    assert exported.digest == tensor_digest(SPEC, imported.data)
    assert (exported.images, exported.images_per_class, exported.dropped) == (12, 3, 0)


def test_a_pixel_bundle_and_its_export_have_one_digest(tmp_path):
    """uint8 pixels, class-major: the exported floats are normalised, and the digest is equal."""
    data = LabeledImages(PIXELS, LABELS)
    exported = export_official(bundle_of(PIXELS, LABELS), SPEC, tmp_path)
    reference = (torch.from_numpy(PIXELS) / 255 - column(SPEC.mean)) / column(SPEC.std)
    assert torch.equal(torch.load(exported.path, weights_only=True), reference)
    imported = import_official(exported.path, SPEC)
    assert imported.normalisation == "official"
    digests = {tensor_digest(SPEC, data), exported.digest, tensor_digest(SPEC, imported.data)}
    assert len(digests) == 1


def test_export_sorts_and_drops_the_surplus(tmp_path):
    """Classes in order, the first images of each, as many as the smallest class has."""
    labels = np.array([3, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 0])
    exported = export_official(bundle_of(PIXELS, labels), SPEC, tmp_path)
    kept = [1, 4, 2, 5, 3, 6, 0, 7]
    assert (exported.images, exported.images_per_class, exported.dropped) == (8, 2, 4)
    tensor = torch.load(exported.path, weights_only=True)
    np.testing.assert_array_equal(tensor.numpy(), normalise(SPEC, PIXELS[kept]))
    expected = LabeledImages(PIXELS[kept], np.repeat(np.arange(4), 2))
    assert exported.digest == tensor_digest(SPEC, expected)


def test_export_needs_every_class_and_a_free_name(tmp_path):
    """A class without images is named, and an existing file is left alone."""
    with pytest.raises(BundleError, match=r"1 of 4 classes have no image, the first is cat"):
        export_official(bundle_of(PIXELS, np.array([0, 1, 3] * 4)), SPEC, tmp_path)
    (tmp_path / "cifar100.pt").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        export_official(bundle_of(PIXELS, LABELS), SPEC, tmp_path)
    assert (tmp_path / "cifar100.pt").read_text() == "precious"


def test_export_to_a_full_disk_leaves_nothing(tmp_path):
    """The kernel's refusal in the middle of torch.save becomes a StorageError."""
    data = bundle_of(PIXELS.repeat(50, axis=0), LABELS.repeat(50))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="no room"):
            export_official(data, SPEC, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- labels


def test_labels_come_from_their_file(tmp_path):
    """Labels of any integer type, in any order, are taken as they are."""
    file = saved(tmp_path, torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    labels = saved(tmp_path, torch.tensor([3, 0, 3], dtype=torch.int16), "labels.pt")
    imported = import_official(file, SPEC, labels)
    assert imported.data.labels.tolist() == [3, 0, 3]
    assert imported.data.labels.dtype == np.int64
    assert imported.notes == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4, 1]), "labels 0 to 3 for cifar100, found 4 for image 1"),
        (torch.tensor([0, 1, -1]), "found -1 for image 2"),
        (torch.tensor([0, 1]), "Expected 3 integer labels.*int64 tensor of shape 2 in"),
        (torch.tensor([0.0, 1, 2]), "float32 tensor of shape 3"),
        (torch.tensor([True, False, True]), "bool tensor of shape 3"),
        (torch.eye(3, dtype=torch.int64), "int64 tensor of shape 3×3"),
        ([0, 1, 2], "the labels as one bare tensor, found a list of 3"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, labels, message):
    """Labels out of range, of another number or kind are named."""
    file = saved(tmp_path, torch.zeros(3, 3, 8, 8))
    with pytest.raises(BundleError, match=message):
        import_official(file, SPEC, saved(tmp_path, labels, "labels.pt"))


def test_labels_that_cannot_be_implied_are_asked_for(tmp_path):
    """A number of images that the classes do not divide leads to --labels."""
    with pytest.raises(BundleError, match=r"holds 10 images.*4 classes.*\n.*--labels"):
        import_official(saved(tmp_path, torch.zeros(10, 3, 8, 8)), SPEC)


# ------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(
    ("mean", "std", "name"),
    [
        (SPEC.mean, SPEC.std, "official"),
        ((0, 0, 0), (1, 1, 1), "none: values 0..1"),
        ((0, 0, 0), (1 / 255,) * 3, "none: values 0..255"),
        ((0.5,) * 3, (0.5,) * 3, "none: values -1..1"),
        (*CIFAR10, "cifar10 statistics"),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet statistics"),
    ],
)
def test_normalised_pixels_are_recognised(tmp_path, mean, std, name, dtype):
    """The grid of 256 values shows which statistics were used, in every float type; the values
    are kept, and anything but the official ones is warned of."""
    pixels = torch.from_numpy(PIXELS).double() / 255
    tensor = ((pixels - column(mean)) / column(std)).to(dtype)
    imported = import_official(saved(tmp_path, tensor), SPEC)
    assert imported.normalisation == name
    np.testing.assert_array_equal(imported.data.images, tensor.float().numpy())
    warned = [note for note in imported.notes if "scored exactly as they are" in note]
    assert len(warned) == (name != "official")
    shown = displayable(imported.data.images, SPEC, name)
    assert np.abs(shown.astype(int) - PIXELS).max() <= (1 if dtype == torch.float16 else 0)


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [
        (-1.5, 1.7, "official"),
        (0.0, 1.0, "none: values 0..1"),
        (0.0, 255.0, "none: values 0..255"),
        (-1.0, 1.0, "none: values -1..1"),
        (-4.0, 4.0, "unknown"),
    ],
)
def test_optimised_values_are_judged_by_their_range(tmp_path, low, high, name):
    """Values on no grid, as optimised images are, are told apart by how far they reach."""
    tensor = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    imported = import_official(saved(tmp_path, tensor * (high - low) + low), SPEC)
    assert imported.normalisation == name


def test_clipped_optimised_values_show_their_statistics(tmp_path):
    """Values that end exactly at CIFAR-10's black and white are recognised without a grid."""
    mean, std = column(CIFAR10[0]), column(CIFAR10[1])
    tensor = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    tensor = torch.minimum(torch.maximum(tensor, -mean / std), (1 - mean) / std)
    assert import_official(saved(tmp_path, tensor), SPEC).normalisation == "cifar10 statistics"


def test_other_types_become_float32_and_it_is_said(tmp_path):
    """bfloat16 is converted exactly and noted; uint8 is taken for pixels."""
    tensor = torch.randn(4, 3, 8, 8).to(torch.bfloat16)
    imported = import_official(saved(tmp_path, tensor), SPEC)
    assert torch.equal(torch.from_numpy(imported.data.images), tensor.float())
    assert imported.notes[0] == "The values were bfloat16 and are now float32."
    imported = import_official(saved(tmp_path, torch.from_numpy(PIXELS)), SPEC)
    assert imported.normalisation == "pixels"
    np.testing.assert_array_equal(imported.data.images, PIXELS)


def test_a_permuted_or_trained_tensor_is_taken(tmp_path):
    """Channels-last strides and Parameters are what people save; the values count."""
    tensor = torch.randn(4, 8, 8, 3)
    imported = import_official(saved(tmp_path, tensor.permute(0, 3, 1, 2)), SPEC)
    np.testing.assert_array_equal(imported.data.images, tensor.numpy().transpose(0, 3, 1, 2))
    parameter = torch.nn.Parameter(torch.randn(4, 3, 8, 8))
    imported = import_official(saved(tmp_path, parameter), SPEC)
    np.testing.assert_array_equal(imported.data.images, parameter.detach().numpy())


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": torch.zeros(4, 3, 8, 8)}, r"a dict with keys 'images'\.\nSave the tensor"),
        ([torch.zeros(1)] * 2, "a list of 2"),
        (None, "found a NoneType"),
        (torch.zeros(4, 3, 8, 9), "N×3×8×8 for cifar100, found a float32 tensor of shape 4×3×8×9"),
        (torch.zeros(4, 8, 8, 3), "shape 4×8×8×3"),
        (torch.zeros(0, 3, 8, 8), "shape 0×3×8×8"),
        (torch.tensor(1.0), "shape one value"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), "float or uint8 images, found a int64"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.complex64), "found a complex64"),
        (torch.zeros(1).expand(4_000_000, 3, 8, 8), r"claims.*3072000000 bytes, but holds 4 "),
        (torch.zeros(4, 3, 8, 8).to_sparse(), r"asks for .*torch\._utils\._rebuild_sparse_tensor"),
        (torch.zeros(4, 3, 8, 8, device="meta"), "_rebuild_meta_tensor_no_storage"),
    ],
)
def test_anything_but_a_dense_image_tensor_is_refused(tmp_path, content, message):
    """The message says what was found; claimed sizes are checked before memory is taken."""
    with pytest.raises(BundleError, match=message):
        import_official(saved(tmp_path, content), SPEC)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path, value):
    """The first image with such a value is named."""
    tensor = torch.zeros(8, 3, 8, 8)
    tensor[5, 2, 7, 7] = tensor[7, 0, 0, 0] = value
    with pytest.raises(BundleError, match="Image 5 holds NaN or infinite"):
        import_official(saved(tmp_path, tensor), SPEC)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    """Every prefix of a good file is an error for people, not a crash."""
    whole = saved(tmp_path, torch.zeros(4, 3, 8, 8)).read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(BundleError, match="not a whole file"):
            import_official(tmp_path / "cut.pt", SPEC)


def test_a_damaged_file_never_gets_past(tmp_path):
    """Bytes changed at random give an error or a tensor of the right shape, nothing else."""
    whole = saved(tmp_path, torch.zeros(4, 3, 8, 8)).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 12):
            damaged[place] = generator.integers(256)
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            assert import_official(tmp_path / "x.pt", SPEC).data.images.shape == (4, 3, 8, 8)
        except BundleError:
            refused += 1
    assert refused > 50


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def archive(path, pickled, **zip_options):
    """A zip as torch.save makes it, with a pickle of our choice."""
    with zipfile.ZipFile(path, "w", **zip_options) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", bytes(64))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_code_is_not_executed(tmp_path, protocol):
    """The payload works where pickle.loads runs it; the importer refuses and nothing runs."""
    marker = tmp_path / "executed"
    pickled = pickle.dumps(Payload(marker), protocol=protocol)
    pickle.loads(pickled)  # noqa: S301 - ours, and the point of the test
    assert marker.exists()
    marker.unlink()
    with pytest.raises(BundleError, match=r"asks for .*\nNothing of it was executed"):
        import_official(archive(tmp_path / "evil.pt", pickled), SPEC)
    (tmp_path / "plain.pt").write_bytes(pickled)
    with pytest.raises(BundleError, match=r"not a whole file of torch\.save"):
        import_official(tmp_path / "plain.pt", SPEC)
    assert not marker.exists()


def test_a_pickle_that_takes_memory_is_refused(tmp_path):
    """bytearray(2**40) passes torch's own list of harmless functions, but not ours."""
    pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."
    with pytest.raises(BundleError, match=r"asks for builtins\.bytearray"):
        import_official(archive(tmp_path / "x.pt", pickled), SPEC)


def test_compressed_and_foreign_archives_are_refused(tmp_path):
    """A zip bomb is seen by its directory alone; a zip of something else is called that."""
    bomb = archive(tmp_path / "bomb.pt", bytes(10**6), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="is compressed"):
        import_official(bomb, SPEC)
    with pytest.raises(BundleError, match="holds far more than one tensor"):
        import_official(archive(tmp_path / "big.pt", bytes(2 << 20)), SPEC)
    locked = bytearray(archive(tmp_path / "locked.pt", b"N.").read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.pt").write_bytes(locked)
    with pytest.raises(BundleError, match="encrypted"):
        import_official(tmp_path / "locked.pt", SPEC)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(BundleError, match=r"a zip archive, but not one of torch\.save"):
        import_official(tmp_path / "other.pt", SPEC)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """A pickle that claims a tensor beyond the bytes of its storage does not read past them."""
    good = io.BytesIO()
    torch.save(torch.zeros(4, 3, 8, 8), good)
    with zipfile.ZipFile(good) as file:
        pickled = file.read("archive/data.pkl")
    shape = b"K\x04K\x03K\x08K\x08"
    assert shape in pickled
    larger = pickled.replace(shape, b"J" + struct.pack("<i", 2**30) + b"K\x03K\x08K\x08")
    with pytest.raises(BundleError, match="not a usable tensor file"):
        import_official(archive(tmp_path / "x.pt", larger), SPEC)


def test_missing_files_and_old_formats_say_so(tmp_path):
    """No file, a folder, and the format from before PyTorch 1.6 each get their own words."""
    with pytest.raises(BundleError, match="There is no file"):
        import_official(tmp_path / "nothing.pt", SPEC)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BundleError, match="There is no file"):
            import_official(path, SPEC)
    torch.save(torch.zeros(4, 3, 8, 8), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(BundleError, match=r"older than PyTorch 1\.6"):
        import_official(tmp_path / "old.pt", SPEC)


def test_a_constant_tensor_of_no_known_range_can_be_looked_at():
    """All values the same and far from any normalisation: a picture of one colour."""
    images = np.full((3, 3, 8, 8), 300.5, dtype=np.float32)
    shown = displayable(images, SPEC, "unknown")
    assert shown.dtype == np.uint8
    assert (shown == shown[:1, :, :1, :1]).all()
