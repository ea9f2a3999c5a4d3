"""What long work shows while it runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ddchallenge.records import SamplingStatus, ScoringStatus

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["SamplingDisplay", "ScoringDisplay", "counting", "duration"]

PLAIN_SECONDS: Final = 10.0
LIVE_SECONDS: Final = 0.1
WIDE_COLUMNS: Final = 110
LINE_COLUMNS: Final = 40


def duration(seconds: float | None) -> str:
    """``0:07``, ``12:34``, ``1:02:03``; ``-:--`` for None."""
    if seconds is None:
        return "-:--"
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


class _Display:
    """One progress line: live where the console is a terminal, else a line now and then."""

    def __init__(self, console: Console, what: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        self._what = what
        self._shown_at = float("-inf")
        self._shown_key = ""
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal:
            # A narrow terminal has room for the facts and for nothing else.
            wide = console.width >= WIDE_COLUMNS
            self._progress = Progress(
                *(
                    [TextColumn("[bold]{task.description}"), BarColumn(bar_width=16)]
                    if wide
                    else []
                ),
                # Part of it may be a stranger's: no markup.
                TextColumn("{task.fields[text]}", markup=False),
                console=console,
                auto_refresh=False,
            )
            self._task = self._progress.add_task(what, total=1.0, text="")
            self._progress.start()

    def _show(self, fraction: float, text: str, key: str) -> None:
        """Show ``text``; at once when ``key`` changes, else no more often than is useful."""
        now = time.monotonic()
        every = LIVE_SECONDS if self._progress else PLAIN_SECONDS
        if key == self._shown_key and now - self._shown_at < every:
            return
        self._shown_at, self._shown_key = now, key
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(fraction, 1.0), text=text)
            self._progress.refresh()
        else:
            line = f"{self._what}: {text}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last line on the terminal and stop drawing."""
        if self._progress is not None:
            self._progress.stop()


class SamplingDisplay(_Display):
    """Time left, images, images a second, images a class, and what is going on."""

    def __call__(self, status: SamplingStatus) -> None:
        """Show where sampling is."""
        images = status.images_sampled + status.images_augmented
        left = status.budget_seconds - status.elapsed_seconds
        if status.line is not None:
            said = f': "{status.line[:LINE_COLUMNS]}"' if status.line else ""
            text = f"{duration(left)} left  {status.activity}{said}"
            fraction = status.elapsed_seconds / max(status.budget_seconds, 1e-9)
            self._show(fraction, text, status.activity)
            return
        wanted = f" of {status.images_wanted:,}" if status.images_wanted else ""
        text = (
            f"{duration(left)} left  {images:,}{wanted} images  "
            f"{images / status.num_classes:,.1f} a class  "
            f"{status.images_per_second:,.0f} sampled/s  {status.activity}"
        )
        fraction = status.elapsed_seconds / max(status.budget_seconds, 1e-9)
        if status.images_wanted:
            fraction = max(fraction, images / status.images_wanted)
        self._show(fraction, text, status.activity)


class ScoringDisplay(_Display):
    """Seed, epoch, loss and time left."""

    def __call__(self, status: ScoringStatus) -> None:
        """Show where scoring is."""
        batch = f" batch {status.batch:,}/{status.batches:,}" if status.batch else ""
        loss = f"loss {status.loss:.4f}  " if status.loss is not None else ""
        of_what = "reference, " if status.subject == "reference" else ""
        text = (
            f"{of_what}seed {status.seed} ({status.seeds_done + 1}/{status.seeds})  "
            f"epoch {status.epoch:,}/{status.epochs:,}{batch}  {loss}"
            + (
                f"{duration(status.remaining_seconds)} left"
                if status.activity == "training"
                else status.activity
            )
        )
        self._show(status.fraction, text, f"{status.subject} {status.seed} {status.activity}")


@contextmanager
def counting(console: Console, what: str, unit: str) -> Iterator[_Counter]:
    """A display for work that is so many units of so many, bytes for instance."""
    display = _Counter(console, what, unit)
    try:
        yield display
    finally:
        display.close()


class _Counter(_Display):
    def __init__(self, console: Console, what: str, unit: str) -> None:
        super().__init__(console, what)
        self._unit = unit
        self._began: tuple[float, int] | None = None
        self._activity = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if self._began is None or what != self._activity:
            # What an earlier try brought says nothing of the rate.
            self._began, self._activity = (now, done), what
        rate = (done - self._began[1]) / max(now - self._began[0], 1e-6)
        left = (total - done) / rate if rate > 0 else None
        scale, unit = (1e6, "MB") if self._unit == "bytes" else (1, self._unit)
        text = (
            f"{what}  {done / scale:,.0f} of {total / scale:,.0f} {unit}  "
            f"{rate / scale:,.1f} {unit}/s  {duration(left)} left"
        )
        self._show(done / max(total, 1), text, f"{what} {done >= total}")
