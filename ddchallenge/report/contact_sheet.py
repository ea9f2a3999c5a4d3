"""A picture of a bundle for people: one row a class, its name and some of its images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from ddchallenge.official import displayable
from ddchallenge.records import DatasetSpec, LabeledImages

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import PIL.ImageFont
    from numpy.typing import NDArray

__all__ = ["contact_sheet"]

# Small images are shown this large at least, in whole multiples so that pixels stay pixels.
_MIN_SIDE: Final = 48
_MAX_COLUMNS: Final = 10
_MIN_COLUMNS: Final = 4
# Photographs take 2.2 bytes a pixel as PNG: this keeps every sheet under 8 MB. Where the fewest
# columns of images would be more, the images are shown smaller.
_MAX_PIXELS: Final = 3_400_000

_MARGIN: Final = 28
_GAP: Final = 3  # between images
_BLOCK_GAP: Final = 36
_LABEL_WIDTH: Final = 170
_LABEL_GAP: Final = 12
_TITLE_HEIGHT: Final = 62

_PAPER: Final = (255, 255, 255)
_INK: Final = (32, 33, 36)
_FAINT: Final = (120, 124, 130)
_EMPTY: Final = (241, 242, 244)
_ALARM: Final = (176, 42, 32)
_NO_IMAGES: Final = "no images"


def contact_sheet(
    data: LabeledImages, spec: DatasetSpec, *, normalisation: str = "pixels"
) -> PIL.Image.Image:
    """An RGB picture with up to ten images of each class, evenly spaced over those it has.

    ``normalisation`` is what float32 images were recognised as; it is undone for display. Rows of
    many classes stand in several blocks side by side. Classes without images keep their row.
    """
    import numpy as np
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    counts = np.bincount(data.labels, minlength=spec.num_classes)
    reduction = _reduction(spec)
    side = -(-spec.image_size // reduction)
    scale = -(-_MIN_SIDE // spec.image_size)
    cell = scale * side + _GAP
    columns = _columns(spec.num_classes, side, int(counts.max()))
    font, small, large = (PIL.ImageFont.load_default(size) for size in (14, 12, 24))
    names = [_shortened(name, font) for name in spec.class_names]
    widths = [font.getlength(name) for name in names]
    if not counts.min():
        widths.append(small.getlength(_NO_IMAGES))
    label_width = int(max(widths)) + _LABEL_GAP
    block_width = label_width + columns * cell + _BLOCK_GAP
    blocks = _blocks(spec.num_classes, block_width, cell)
    rows = -(-spec.num_classes // blocks)

    subtitle = _subtitle(counts, spec, normalisation)
    title_end = _MARGIN + large.getlength(spec.name) + 14
    width = 2 * _MARGIN + blocks * block_width - _BLOCK_GAP - _GAP
    width = max(width, int(title_end + font.getlength(subtitle)) + _MARGIN)
    height = _MARGIN + _TITLE_HEIGHT + rows * cell - _GAP + _MARGIN

    canvas = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    order = np.argsort(data.labels, kind="stable")
    starts = np.cumsum(counts) - counts
    corners: list[tuple[int, int]] = []
    for label, count in enumerate(counts.tolist()):
        block, row = divmod(label, rows)
        x = _MARGIN + block * block_width + label_width
        y = _MARGIN + _TITLE_HEIGHT + row * cell
        corners.append((x, y))
        shown = order[starts[label] + _spread(count, columns)]
        pixels = displayable(data.images[shown], spec, normalisation)
        for column in range(columns):
            left = x + column * cell
            window = canvas[y : y + cell - _GAP, left : left + cell - _GAP]
            if column < len(pixels):
                image = pixels[column].transpose(1, 2, 0)
                if reduction > 1:
                    image = np.asarray(PIL.Image.fromarray(image).reduce(reduction))
                window[...] = image.repeat(scale, axis=0).repeat(scale, axis=1)
            else:
                window[...] = _EMPTY

    sheet = PIL.Image.fromarray(canvas)
    draw = PIL.ImageDraw.Draw(sheet)
    baseline = _MARGIN + 26
    draw.text((_MARGIN, baseline), spec.name, fill=_INK, font=large, anchor="ls")
    draw.text((title_end, baseline), subtitle, fill=_FAINT, font=font, anchor="ls")
    for (x, y), name, count in zip(corners, names, counts.tolist(), strict=True):
        right, middle = x - _LABEL_GAP, y + (cell - _GAP) // 2
        if count:
            draw.text((right, middle), name, fill=_INK, font=font, anchor="rm")
        else:
            draw.text((right, middle - 2), name, fill=_ALARM, font=font, anchor="rs")
            draw.text((right, middle + 3), _NO_IMAGES, fill=_ALARM, font=small, anchor="rt")
    return sheet


def _reduction(spec: DatasetSpec) -> int:
    """How many pixels a side are shown as one."""
    largest = math.isqrt(_MAX_PIXELS // (spec.num_classes * _MIN_COLUMNS))
    return -(-spec.image_size // max(1, largest))


def _columns(classes: int, side: int, most: int) -> int:
    fitting = _MAX_PIXELS // (classes * side**2)
    return max(1, min(most, _MAX_COLUMNS, max(_MIN_COLUMNS, fitting)))


def _blocks(classes: int, block_width: int, cell: int) -> int:
    """The fewest blocks side by side that make the sheet no taller than wide, about."""
    blocks = 1
    while -(-classes // blocks) * cell > 1.1 * blocks * block_width:
        blocks += 1
    return blocks


def _spread(count: int, wanted: int) -> NDArray[np.intp]:
    """Up to ``wanted`` positions spread evenly over ``count``."""
    import numpy as np

    shown = min(count, wanted)
    return np.arange(shown) * count // max(1, shown)


def _subtitle(counts: NDArray[Any], spec: DatasetSpec, normalisation: str) -> str:
    fewest, most = int(counts.min()), int(counts.max())
    each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    parts = [
        f"{int(counts.sum()):,} images",
        f"{spec.num_classes} classes",
        f"{each} images a class",
        f"{spec.image_size} by {spec.image_size} pixels",
    ]
    if normalisation != "pixels":
        parts.append(f"float values, normalisation {normalisation}")
    return "   ·   ".join(parts)


def _shortened(name: str, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont) -> str:
    """The first of several names, cut to the width there is."""
    name = name.split(",")[0].replace("_", " ").strip()
    if font.getlength(name) <= _LABEL_WIDTH:
        return name
    while name and font.getlength(name + "...") > _LABEL_WIDTH:
        name = name[:-1]
    return name.rstrip() + "..."
