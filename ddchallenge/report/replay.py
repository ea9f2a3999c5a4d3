"""What a replay found, in sentences and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ddchallenge.records import DatasetSpec
from ddchallenge.replay.comparing import DifferentImage, Replay
from ddchallenge.replay.recorded import chance_to_catch

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

__all__ = ["difference_picture", "replay_lines"]

# The share of false batches that is spoken of.
_FALSE_SHARE: Final = 0.1

_SIDE: Final = 240  # pixels an image is shown at, at least, in whole multiples
_MARGIN: Final = 24
_GAP: Final = 16
_HEADING: Final = 46
_CAPTION: Final = 24
_PAPER: Final = (255, 255, 255)
_INK: Final = (32, 33, 36)


def replay_lines(replay: Replay, spec: DatasetSpec) -> tuple[str, ...]:
    """The outcome for people, a line each; the first says it all."""
    checked, recorded = replay.batches_checked, replay.batches_recorded
    lines = [
        f"{replay.verdict}: {checked:,} of {recorded:,} batches generated again, "
        f"{replay.images_compared:,} images compared, {replay.images_identical:,} identical",
        f"worst mean absolute difference of an image {replay.worst_difference:.4f}, "
        f"of all {replay.mean_difference:.4f} grey values of 255; tolerance {replay.tolerance:g}",
    ]
    if replay.copies_compared:
        lines.append(
            f"{replay.copies_compared:,} augmented copies made again, "
            f"{replay.copies_identical:,} identical; all must be"
        )
    if replay.first_different is not None:
        lines.append(f"first to differ: {_named(replay.first_different, spec)}")
    if replay.unfinished:
        lines.append(f"not every batch that was asked for came ({replay.unfinished})")
    if replay.verdict != "different":  # where something was found, the odds of finding it are idle
        lines.append(_power(checked, recorded))
    return tuple(lines)


def _power(checked: int, recorded: int) -> str:
    if checked == recorded:
        return "every batch of the run was checked"
    false = max(1, round(_FALSE_SHARE * recorded))
    chance = chance_to_catch(recorded, checked, false)
    share = f"{false:,} of the {recorded:,} batches"
    return (
        f"had {share} been false, a sample of {checked:,} would have shown it "
        f"with a probability of {100 * chance:.0f} %; --batches takes more"
    )


def _named(image: DifferentImage, spec: DatasetSpec) -> str:
    copy = f"copy {image.copy} of " if image.copy else ""
    return (
        f"{copy}image {image.number:,} (class {spec.class_names[image.label]}) of batch "
        f"{image.batch:,}, row {image.row:,} of the bundle, by {image.difference:.4f} grey values"
    )


def difference_picture(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]], image: DifferentImage, spec: DatasetSpec
) -> PIL.Image.Image:
    """An RGB picture: the bundle's image, what it should be, and where they differ.

    ``pair`` is uint8 3×S×S each. The difference is stretched so that the largest is white; by how
    much stands below it.
    """
    import numpy as np
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    found, expected = pair
    difference = np.abs(found.astype(np.int32) - expected)
    largest = max(1, int(difference.max()))
    stretched = (difference * 255 // largest).astype(np.uint8)
    scale = -(-_SIDE // found.shape[-1])
    side = scale * found.shape[-1]
    panels = (
        ("bundle", found),
        ("augmented again" if image.copy else "generated again", expected),
        (f"difference x {255 / largest:.3g} (at most {largest} of 255)", stretched),
    )
    font, large = (PIL.ImageFont.load_default(size) for size in (14, 17))
    title = f"{spec.name}: {_named(image, spec)}"
    width = 2 * _MARGIN + max(3 * side + 2 * _GAP, int(large.getlength(title)))
    canvas = np.full((_MARGIN + _HEADING + side + _CAPTION + _MARGIN, width, 3), _PAPER, np.uint8)
    top = _MARGIN + _HEADING
    for i, (_, pixels) in enumerate(panels):
        left = _MARGIN + i * (side + _GAP)
        shown = pixels.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + side, left : left + side] = shown
    picture = PIL.Image.fromarray(canvas)
    draw = PIL.ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN + 18), title, fill=_INK, font=large, anchor="ls")
    for i, (caption, _) in enumerate(panels):
        left = _MARGIN + i * (side + _GAP)
        draw.text((left, top + side + _CAPTION - 6), caption, fill=_INK, font=font, anchor="ls")
    return picture
