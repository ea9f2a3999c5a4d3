"""A picture of which classes were taken for which: true class down, predicted class across.

Each row is divided by its number of test images, so the diagonal is the accuracy of each class.
The colours follow the square root of the share: a network that knows little spreads its answers
thinly, and on an even scale all of them would look like nothing. The colour bar has the numbers.
"""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ddchallenge.atomic import atomic_file
from ddchallenge.records import DatasetSpec, Result
from ddchallenge.report.tables import accuracy_text, per_class_text, protocol_text

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ddchallenge.records import CountArray

__all__ = ["confusion_figure", "write_confusion"]

_DPI: Final = 150
_COLOURS: Final = "BuPu"
_INK: Final = "#202124"
_FAINT: Final = "#787c82"
_ALARM: Final = "#b02a20"
_EDGE: Final = "#c9ccd1"
_MAX_NAME: Final = 24
# The colours end at the first of these that no share exceeds; the ticks are parts of it.
_ENDS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_TICKS: Final = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

# Pixels.
_MARGIN: Final = 40
_AXIS_TITLE: Final = 44
_LABEL_GAP: Final = 14
_BAR: Final = 26
_BAR_GAP: Final = 44
_BAR_LABELS: Final = 110
_MAX_BAR: Final = 900
_MIN_TITLE: Final = 900
_PITCH: Final = 15  # of the smallest labels


@dataclass(frozen=True, slots=True)
class _Line:
    """A line above the matrix: its size in points, and the pixels it takes."""

    text: str
    points: float
    colour: str
    pixels: int


def write_confusion(path: Path, confusion: CountArray, result: Result, spec: DatasetSpec) -> None:
    """Write :func:`confusion_figure` as a PNG, atomically.

    Raises :class:`OutputError` or :class:`StorageError` where it cannot be written.
    """
    import matplotlib as mpl

    with atomic_file(path) as temporary, mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a matplotlibrc of the user's is meant for other pictures
        # Names in a script that the font lacks become boxes; the picture is no worse for it.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        confusion_figure(confusion, result, spec).savefig(temporary, format="png", dpi=_DPI)


def confusion_figure(confusion: CountArray, result: Result, spec: DatasetSpec) -> Figure:
    """The confusion of all seeds of a result together, with every class named up to 300.

    ``confusion`` is int64 C×C, true class down; rows without test images stay empty. The figure
    grows with the number of classes: about 1200 pixels wide for 10, 3700 for 200. Beyond 300 it
    grows no more, and every other class is named, or fewer.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = spec.num_classes
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell, points = _cell(classes)
    named = range(0, classes, -(-_PITCH // cell))
    names = [_short(spec.class_names[label]) for label in named]
    longest = max(_width(name, points) for name in names)
    upright = longest > cell - 6
    around = classes > 50  # names on all four sides: the near ones may be a screen away

    side = cell * classes
    left = _MARGIN + _AXIS_TITLE + longest + _LABEL_GAP
    labels_across = (longest if upright else 16) + _LABEL_GAP
    beyond = longest + _LABEL_GAP if around else 0
    right = beyond + _BAR_GAP + _BAR + _BAR_LABELS + _MARGIN
    bottom = labels_across + _AXIS_TITLE + _MARGIN
    room = max(side + right - _MARGIN, _MIN_TITLE)
    lines = _lines(result, room)
    top = (labels_across if around else 0) + sum(line.pixels for line in lines) + _MARGIN
    width, height = left + room + _MARGIN, top + side + bottom

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, y / height, w / width, h / height))

    matrix = axes(left, bottom, side, side)
    end = next((end for end in _ENDS if end >= shares.max()), 1.0)
    norm = PowerNorm(0.5, vmin=0.0, vmax=end)
    image = matrix.imshow(shares, cmap=_COLOURS, norm=norm, interpolation="nearest")
    matrix.set_xticks(named, names, rotation=90 if upright else 0, parse_math=False)
    matrix.set_yticks(named, names, parse_math=False)
    matrix.tick_params(
        length=0, pad=4, labelsize=points, labelcolor=_INK, labeltop=around, labelright=around
    )
    matrix.set_xlabel("predicted class", fontsize=11, color=_FAINT, labelpad=9)
    matrix.set_ylabel("true class", fontsize=11, color=_FAINT, labelpad=9)
    _rule(matrix, classes)
    if classes <= 20:
        _write_shares(matrix, shares, norm(shares))

    bar = axes(
        left + side + beyond + _BAR_GAP,
        bottom + side - min(side, _MAX_BAR),
        _BAR,
        min(side, _MAX_BAR),
    )
    figure.colorbar(image, cax=bar, ticks=[end * tick for tick in _TICKS])
    bar.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    bar.tick_params(length=3, color=_EDGE, labelsize=9, labelcolor=_INK)
    bar.set_ylabel("of the class's test images", fontsize=10, color=_FAINT, labelpad=8)
    bar.spines[:].set_color(_EDGE)

    y = height - _MARGIN
    for line in lines:
        figure.text(
            left / width,
            y / height,
            line.text,
            fontsize=line.points,
            color=line.colour,
            va="top",
            parse_math=False,
        )
        y -= line.pixels
    return figure


def _cell(classes: int) -> tuple[int, float]:
    """The side of a cell in pixels, and the size of its labels in points."""
    if classes <= 12:
        return max(84, min(320, 640 // classes)), 11
    if classes <= 20:
        return 60, 10
    if classes <= 50:
        return 34, 9
    if classes <= 120:
        return 20, 7.5
    return (_PITCH if classes <= 300 else max(1, 300 * _PITCH // classes)), 6


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1].rstrip() + "…"


def _width(text: str, points: float) -> int:
    """Pixels of a text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(size=points), ismath=False
    )
    return round(width * _DPI / 72)


def _lines(result: Result, pixels: int) -> list[_Line]:
    """What stands above the matrix, in lines of at most so many pixels."""
    title = f"{result.submission.name} on {result.dataset}: {accuracy_text(result.accuracy)} %"
    bundle = result.bundle
    facts = (
        f"trained on {bundle.images:,} images, {per_class_text(bundle.images_per_class)} a class, "
        f"tested on {result.runs[0].test_images:,}"
    )
    found = []
    for text, points, colour, height in (
        (title, 16, _INK, 44),
        (protocol_text(result), 10, _FAINT, 27),
        (facts, 10, _FAINT, 27),
        ("; ".join(result.marks), 10, _ALARM, 27),
    ):
        characters = int(pixels / _width("n", points))
        found += [_Line(line, points, colour, height) for line in textwrap.wrap(text, characters)]
    return [*found, _Line("", 10, _INK, 12)]


def _rule(matrix: Axes, classes: int) -> None:
    """White lines between few cells; faint ones every ten classes, to follow, between many."""
    import numpy as np

    few = classes <= 20
    edges = np.arange(0, classes + 1, 1 if few else 10) - 0.5
    matrix.set_xticks(edges, minor=True)
    matrix.set_yticks(edges, minor=True)
    matrix.grid(which="minor", color="white" if few else _EDGE, linewidth=1.5 if few else 0.5)
    matrix.tick_params(which="minor", length=0)
    matrix.spines[:].set_color(_EDGE)


def _write_shares(matrix: Axes, shares: NDArray[np.float64], depth: NDArray[Any]) -> None:
    """The per cent in each cell that has any, white on what is dark."""
    import numpy as np

    for (row, column), share in ((at, share) for at, share in np.ndenumerate(shares) if share):
        matrix.text(
            column,
            row,
            f"{100 * share:.1f}",
            ha="center",
            va="center",
            fontsize=9.5,
            color="white" if depth[row, column] > 0.55 else _INK,
        )
