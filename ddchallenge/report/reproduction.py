"""What came of getting a result again, in sentences."""

from __future__ import annotations

from ddchallenge.records import Result
from ddchallenge.report.tables import accuracy_text
from ddchallenge.reproduce.agreement import Agreement

__all__ = ["reproduction_lines"]


def reproduction_lines(recorded: Result, again: Result, found: Agreement) -> tuple[str, ...]:
    """The outcome for people, a line each; the last says it all."""
    low, high = (100 * end for end in found.interval)
    return (
        *(f"{c.what}: {c.again}, recorded {c.recorded}" for c in found.changes),
        _images(found),
        f"recorded   {accuracy_text(recorded.accuracy)} %  (seeds: {_seeds(recorded)})",
        f"again      {accuracy_text(again.accuracy)} %  (seeds: {_seeds(again)})",
        _identity(found),
        f"{'agrees' if found.agrees else 'does not agree'}: {100 * found.difference:+.2f} points, "
        f"95 % interval {low:+.2f} to {high:+.2f}, which "
        f"{'holds' if found.agrees else 'does not hold'} zero{_seeds_alone(found)}",
    )


def _seeds_alone(found: Agreement) -> str:
    if found.same_images or found.seeds_interval is None:
        return ""
    low, high = (100 * end for end in found.seeds_interval)
    return f" (over seeds alone {low:+.2f} to {high:+.2f}; the images are others)"


def _seeds(result: Result) -> str:
    return ", ".join(f"{100 * run.accuracy:.2f}" for run in result.runs)


def _images(found: Agreement) -> str:
    if found.same_images:
        return f"images: the same {found.images_again:,}, to the last bit"
    if found.images_again == found.images_recorded:
        return f"images: {found.images_again:,} as recorded, but not the same ones"
    more = found.images_again > found.images_recorded
    return (
        f"images: {found.images_again:,}, recorded {found.images_recorded:,}: the generator is "
        f"{'faster' if more else 'slower'} on this machine, or ended otherwise"
    )


def _identity(found: Agreement) -> str:
    if found.identical:
        return "identical: every seed recognises as many test images as recorded"
    if found.identical_expected:
        return (
            "not identical, though images, settings, versions and hardware are the same by name: "
            "another processor of that name, or a record that was changed"
        )
    return "not identical, and not expected to be"
