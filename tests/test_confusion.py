"""The picture of a confusion matrix: the right colours in the right places, every name readable."""

import errno
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_leaderboard import result

from ddchallenge.datasets import get_dataset
from ddchallenge.errors import OutputError, StorageError
from ddchallenge.report.confusion import confusion_figure, write_confusion


def spec_of(classes, names=None):
    names = names or [f"class {label}" for label in range(classes)]
    ids = tuple(f"c{label}" for label in range(classes))
    return replace(get_dataset("digits"), class_ids=ids, class_names=tuple(names))


def confusion_of(classes, images=50, seed=0):
    """Counts that add up to so many images a class, most of them right."""
    rng = np.random.default_rng(seed)
    wrong = rng.multinomial(images // 2, rng.dirichlet(np.full(classes, 0.3)), size=classes)
    return (wrong + np.eye(classes, dtype=np.int64) * (images - images // 2)).astype(np.int64)


def drawn(figure):
    """The figure's pixels, uint8 H×W×3."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize("classes", [1, 2, 10, 37, 100, 200, 450])
def test_every_cell_has_the_colour_of_its_share(classes):
    """Rows divided by their sums, true class down; cells are squares of whole pixels, and the
    colour of each stands on the colour bar beside its share."""
    confusion = confusion_of(classes)
    figure = confusion_figure(confusion, result("a", 0.5), spec_of(classes))
    pixels = drawn(figure)
    matrix, bar = figure.axes
    box = matrix.get_window_extent()
    cell = box.width / classes
    assert cell == pytest.approx(round(cell), abs=1e-6)
    assert box.height == pytest.approx(box.width)

    shares = confusion / confusion.sum(axis=1, keepdims=True)
    (image,) = matrix.images
    assert np.array_equal(image.get_array(), shares)
    assert image.norm.vmax >= shares.max()
    expected = np.round(image.to_rgba(shares)[..., :3] * 255)
    # A quarter of the way in: numbers stand in the middle, lines at the edges.
    aside = 0.5 if classes > 20 else 0.25
    middles = (np.arange(classes) + aside) * cell
    rows = (len(pixels) - box.y1 + middles).astype(int)
    columns = (box.x0 + middles).astype(int)
    found = pixels[rows[:, None], columns[None, :]].astype(int)
    off = np.abs(found - expected).max(axis=2) > 1
    if classes > 300:  # at few pixels a cell the lines every ten cover some
        off[:, ::10] = off[::10, :] = False
    assert not off.any()

    low, high = bar.get_ylim()
    assert (low, high) == (0, image.norm.vmax)
    strip = bar.get_window_extent()
    for share in (0.1 * high, 0.5 * high):
        height = strip.y0 + image.norm(share) * strip.height
        colour = pixels[len(pixels) - 1 - int(height), int(strip.x0 + strip.width / 2)]
        exact = np.round(np.array(image.to_rgba(share)[:3]) * 255)
        assert np.abs(colour.astype(int) - exact).max() <= 4


def test_few_classes_have_their_shares_written_in_the_cells():
    """In per cent, to be read without the colour bar; nothing stands where nothing is."""
    confusion = np.array([[3, 1, 0], [0, 8, 0], [1, 1, 1]])
    matrix, _ = confusion_figure(confusion, result("a", 0.5), spec_of(3)).axes
    written = {text.get_position(): text.get_text() for text in matrix.texts}
    assert written == {
        (0, 0): "75.0",
        (1, 0): "25.0",
        (1, 1): "100.0",
        (0, 2): "33.3",
        (1, 2): "33.3",
        (2, 2): "33.3",
    }


@pytest.mark.parametrize("name", ["digits", "cifar100", "tinyimagenet"])
def test_every_class_is_named_and_no_name_covers_another(name):
    """On both axes, in order, inside the picture; lines of text keep apart."""
    spec = get_dataset(name)
    figure = confusion_figure(confusion_of(spec.num_classes), result("a", 0.5, dataset=name), spec)
    height, width, _ = drawn(figure).shape
    matrix, bar = figure.axes
    sides = [
        [tick.label1 for tick in matrix.yaxis.get_major_ticks()],
        [tick.label1 for tick in matrix.xaxis.get_major_ticks()],
    ]
    if spec.num_classes > 50:  # on the right and at the top as well
        sides.append([tick.label2 for tick in matrix.yaxis.get_major_ticks()])
        sides.append([tick.label2 for tick in matrix.xaxis.get_major_ticks()])
    for labels in sides:
        assert [label.get_text() for label in labels] == list(spec.class_names)
        assert all(label.get_visible() for label in labels)
    texts = [*figure.texts, *bar.get_yticklabels(), bar.yaxis.label]
    texts += [matrix.xaxis.label, matrix.yaxis.label, *matrix.texts]
    texts += [label for labels in sides for label in labels]
    for box in (text.get_window_extent() for text in texts if text.get_text()):
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 5
    boxes = [[label.get_window_extent() for label in labels] for labels in sides]
    down, across, *_ = boxes
    for names in boxes[::2]:
        assert all(lower.y1 <= upper.y0 + 1 for upper, lower in pairwise(names))
    for names in boxes[1::2]:
        assert all(left.x1 <= right.x0 + 1 for left, right in pairwise(names))
    if spec.num_classes > 50:
        assert max(box.x1 for box in boxes[2]) < bar.get_window_extent().x0
        assert max(box.y1 for box in boxes[3]) < min(
            text.get_window_extent().y0 for text in figure.texts if text.get_text()
        )
    # Axis titles and bar keep clear of the names.
    assert matrix.yaxis.label.get_window_extent().x1 < min(box.x0 for box in down)
    assert matrix.xaxis.label.get_window_extent().y1 < min(box.y0 for box in across)


def test_more_classes_than_can_be_named_are_named_now_and_then():
    """A thousand classes: the picture stays of a size that opens, every fourth has its name."""
    figure = confusion_figure(confusion_of(1000), result("a", 0.5), spec_of(1000))
    ticks = figure.axes[0].yaxis.get_major_ticks()
    names = [tick.label1.get_text() for tick in ticks]
    assert names == [f"class {label}" for label in range(0, 1000, 4)]
    assert max(figure.get_size_inches() * figure.dpi) < 5000


def test_the_title_says_what_was_scored_and_how():
    """Submission, dataset, accuracy, protocol, counts, and what is unofficial about it."""
    row = result("mine", 0.875, marks=("real images", "unofficial: 2 of 1000 epochs"))
    figure = confusion_figure(confusion_of(10), row, spec_of(10))
    assert [text.get_text() for text in figure.texts if text.get_text()] == [
        "mine on digits: 87.50 %",
        "eccv2024, ConvNetD3-W128, exact numerics, 1 seed",
        "trained on 100 images, 10 a class, tested on 2",
        "real images; unofficial: 2 of 1000 epochs",
    ]
    matrix, bar = figure.axes
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")
    assert bar.get_ylabel() == "of the class's test images"


def test_a_long_title_is_broken_into_lines():
    """Marks without end and a long name stay inside the picture."""
    row = result("a_very_long_name_" * 8, 0.5, marks=("a mark of some length",) * 20)
    figure = confusion_figure(confusion_of(3), row, spec_of(3))
    height, width, _ = drawn(figure).shape
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    assert len(boxes) > 6
    assert max(box.x1 for box in boxes) < width
    assert max(box.y1 for box in boxes) < height
    assert all(upper.y0 > lower.y0 for upper, lower in pairwise(boxes))
    assert min(box.y0 for box in boxes) > figure.axes[0].get_window_extent().y1


@pytest.mark.parametrize(
    "names",
    [
        ["$x_1$", "\\frac{", "100%"],
        ["金魚", "🐟", "\x07"],
        ["x" * 300, "", " "],
    ],
)
def test_classes_may_be_called_anything(tmp_path, names):
    """Formulas are not set, missing glyphs not complained of, endless names cut."""
    path = tmp_path / "confusion.png"
    row = result("$a$_\\alpha", 0.5, marks=("$\\bad{",))
    write_confusion(path, confusion_of(3), row, spec_of(3, names))
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        assert max(picture.size) < 2000


def test_a_class_without_test_images_has_an_empty_row():
    """Nothing is divided by nothing."""
    confusion = confusion_of(4)
    confusion[2] = 0
    matrix, _ = confusion_figure(confusion, result("a", 0.5), spec_of(4)).axes
    assert matrix.images[0].get_array()[2].tolist() == [0, 0, 0, 0]


def test_the_users_own_style_is_neither_used_nor_changed(tmp_path):
    """What a matplotlibrc says is for the user's pictures; ours come out the same."""
    names = ("plain.png", "styled.png")
    write_confusion(tmp_path / names[0], confusion_of(4), result("a", 0.5), spec_of(4))
    mine = {"text.usetex": True, "savefig.bbox": "tight", "font.size": 40, "axes.grid": True}
    with mpl.rc_context(mine):
        write_confusion(tmp_path / names[1], confusion_of(4), result("a", 0.5), spec_of(4))
        assert {key: mpl.rcParams[key] for key in mine} == mine
    plain, styled = (np.asarray(PIL.Image.open(tmp_path / name)) for name in names)
    assert np.array_equal(plain, styled)


def test_no_display_and_no_global_figures_are_touched(tmp_path):
    """pyplot, which keeps every figure and looks for a screen, is never loaded."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_confusion import *\n"
        "write_confusion(Path(sys.argv[2]), confusion_of(3), result('a', 0.5), spec_of(3))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    path = tmp_path / "confusion.png"
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > 0


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """No folder to write in, a disk that fills up: an error that says so, and nothing left."""
    (tmp_path / "file").write_text("mine")
    row, spec = result("a", 0.5), spec_of(3)
    with pytest.raises(OutputError, match="cannot be written"):
        write_confusion(tmp_path / "file" / "confusion.png", confusion_of(3), row, spec)

    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(StorageError, match="no room"):
        write_confusion(tmp_path / "confusion.png", confusion_of(3), row, spec)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
