"""Contact sheets: the right pixels in the right places."""

from itertools import pairwise

import numpy as np
import pytest

from ddchallenge.datasets.normalise import normalise
from ddchallenge.records import DatasetSpec, LabeledImages
from ddchallenge.report.contact_sheet import contact_sheet


def spec(classes=10, size=8, names=None):
    return DatasetSpec(
        name="shapes",
        class_ids=tuple(map(str, range(classes))),
        class_names=tuple(names or [f"class {i}" for i in range(classes)]),
        image_size=size,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        training_images_per_class=10,
        test_images=9,
    )


def coloured(classes, each, size=8):
    """Every image has a colour of its own, far from grey and from white: (label, number, 255)."""
    labels = np.repeat(np.arange(classes), each)
    numbers = np.tile(np.arange(each), classes)
    images = np.empty((len(labels), 3, size, size), np.uint8)
    images[:, 0] = labels[:, None, None]
    images[:, 1] = numbers[:, None, None]
    images[:, 2] = 255
    return LabeledImages(images, labels)


def patches(sheet):
    """The solid squares of ``coloured`` images: (label, number) -> (left, top, width, height)."""
    pixels = np.asarray(sheet)
    marked = np.argwhere((pixels[..., 2] == 255) & (pixels[..., 0] < 201) & (pixels[..., 1] < 20))
    code = pixels[..., 0].astype(int) * 256 + pixels[..., 1]
    keys, group = np.unique(code[marked[:, 0], marked[:, 1]], return_inverse=True)
    first = np.full((len(keys), 2), 10**6)
    last = np.zeros((len(keys), 2), int)
    np.minimum.at(first, group, marked)
    np.maximum.at(last, group, marked)
    return {
        divmod(key, 256): (left, top, right - left + 1, bottom - top + 1)
        for key, (top, left), (bottom, right) in zip(
            keys.tolist(), first.tolist(), last.tolist(), strict=True
        )
    }


@pytest.mark.parametrize(
    ("classes", "size", "side"), [(10, 8, 48), (10, 28, 56), (100, 32, 64), (5, 64, 64)]
)
def test_each_class_has_its_row_and_each_image_its_size(classes, size, side):
    """One row a class in order, images left to right, small ones enlarged in whole multiples,
    none over another."""
    data = coloured(classes, 6, size)
    round_robin = np.arange(classes * 6).reshape(classes, 6).T.ravel()
    data = LabeledImages(data.images[round_robin], data.labels[round_robin])
    places = patches(contact_sheet(data, spec(classes, size)))
    assert set(places) == {(label, number) for label in range(classes) for number in range(6)}
    assert {(width, height) for _, _, width, height in places.values()} == {(side, side)}
    for label in range(classes):
        row = [places[label, number] for number in range(6)]
        assert len({top for _, top, _, _ in row}) == 1
        assert {after[0] - before[0] for before, after in pairwise(row)} == {side + 3}
    corners = [places[label, 0][:2] for label in range(classes)]
    assert corners == sorted(corners)  # down a block, then the next block to the right


def test_pixels_are_enlarged_exactly():
    """An 8 px image is in the sheet with every pixel as a 6×6 square of its own colour."""
    image = np.random.default_rng(0).integers(0, 200, (1, 3, 8, 8), dtype=np.uint8)
    image[:, 2] = 255
    sheet = np.asarray(contact_sheet(LabeledImages(image, np.zeros(1, np.int64)), spec(1)))
    top, left = np.argwhere((sheet[..., 2] == 255) & (sheet[..., 0] < 200)).min(axis=0)
    shown = sheet[top : top + 48, left : left + 48]
    np.testing.assert_array_equal(shown[3::6, 3::6], image[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(shown, np.kron(shown[::6, ::6], np.ones((6, 6, 1), np.uint8)))


def test_images_are_spread_over_all_a_class_has():
    """Of twenty images ten are shown, every second one: copies of one image don't fill a row."""
    places = patches(contact_sheet(coloured(10, 20), spec()))
    assert {number for label, number in places if label == 3} == set(range(0, 20, 2))


def test_normalised_images_look_like_their_pixels():
    """Float images, official or unnormalised, give the same picture as the pixels they came of."""
    data = coloured(10, 3)
    rows = np.s_[80:, :]  # below the title, which names the normalisation
    wanted = np.asarray(contact_sheet(data, spec()))[rows]
    for normalisation, values in [
        ("official", normalise(spec(), data.images)),
        ("none: values 0..1", data.images.astype(np.float32) / 255),
        ("none: values 0..255", data.images.astype(np.float32)),
    ]:
        floats = LabeledImages(values, data.labels)
        sheet = np.asarray(contact_sheet(floats, spec(), normalisation=normalisation))[rows]
        np.testing.assert_array_equal(sheet[:, : wanted.shape[1]], wanted)


def test_a_class_without_images_keeps_its_row():
    """Its place stays free and says so; the others are where they would be anyway."""
    data = coloured(10, 5)
    kept = data.labels != 4
    sheet = contact_sheet(LabeledImages(data.images[kept], data.labels[kept]), spec())
    places = patches(sheet)
    assert {label for label, _ in places} == set(range(10)) - {4}
    _, top, _, _ = places[3, 0]
    assert places[5, 0][1] - top == 2 * 51 or places[5, 0][1] < top
    red = np.all(np.asarray(sheet) == (176, 42, 32), axis=2)
    assert red.any()
    assert top + 48 < np.argwhere(red)[:, 0].min() < top + 2 * 51


def test_every_label_is_drawn_inside_the_sheet():
    """Text is left of every row and never cut at the edge, however long a name is."""
    names = ["a", "European fire salamander", "x" * 80, "one, two, three", "lawn_mower"]
    sheet = np.asarray(contact_sheet(coloured(5, 4), spec(5, names=names)))
    places = patches(contact_sheet(coloured(5, 4), spec(5, names=names)))
    for label in range(5):
        left, top, _, height = places[label, 0]
        text = (sheet[top : top + height, :left] < 128).all(axis=2)
        assert text.any()
        assert np.argwhere(text)[:, 1].min() >= left - 190
    assert (sheet[:, :8] == 255).all()
    assert (sheet[:, -8:] == 255).all()


def test_two_hundred_classes_fit_a_screen_and_eight_megabytes(tmp_path):
    """Many classes stand in blocks side by side: no taller than wide, and below 8 MB even for
    noise as rough as photographs are at worst."""
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 200, (200 * 10, 3, 16, 16), dtype=np.uint8)
    images = smooth.repeat(4, axis=2).repeat(4, axis=3)
    images += generator.integers(0, 24, images.shape, dtype=np.uint8)
    data = LabeledImages(images, np.repeat(np.arange(200), 10))
    sheet = contact_sheet(data, spec(200, 64))
    assert sheet.height < 1.2 * sheet.width
    sheet.save(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size < 8_000_000


def test_large_images_of_many_classes_are_shown_smaller():
    """A hundred classes of 224 px: four columns of 75 px, each pixel the mean of nine (the last
    of six), so that the sheet stays within its size; ten classes keep their 224 px."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 200, (100, 3, 224, 224), dtype=np.uint8)
    images[:, 2] = 255
    data = LabeledImages(images, np.arange(100))
    sheet = np.asarray(contact_sheet(data, spec(100, 224)))
    top, left = np.argwhere((sheet[..., 2] == 255) & (sheet[..., 0] < 200)).min(axis=0)
    shown = sheet[top : top + 75, left : left + 75]
    mean = images[0, :, :222, :222].reshape(3, 74, 3, 74, 3).mean(axis=(2, 4)).transpose(1, 2, 0)
    assert np.abs(shown[:74, :74] - mean).max() < 1
    assert (shown[:, :, 2] == 255).all()
    assert sheet.shape[0] * sheet.shape[1] < 9_000_000
    few = patches(contact_sheet(coloured(10, 6, 224), spec(10, 224)))
    assert {place[2:] for place in few.values()} == {(224, 224)}
