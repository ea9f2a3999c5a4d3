"""Which batches came when, in few enough lines that a manifest stays readable."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ddchallenge.records import BatchRecord

__all__ = ["BatchLog"]

LINES: Final = 10_000


class BatchLog:
    """Batches in the order they came; :meth:`lines` is what the log of a run has of them.

    After ten minutes of a thousand batches a second it must stay readable, so batches of the same
    size that came in the same ten-thousandth of the budget share a line.
    """

    def __init__(self, budget_seconds: float) -> None:
        self._slot = budget_seconds / LINES
        self._lines: list[BatchRecord] = []

    def add(self, index: int, seed: int, first: int, count: int, received_seconds: float) -> None:
        """Note a batch; the arguments are the fields of :class:`BatchRecord`."""
        record = BatchRecord(
            index=index,
            batches=1,
            seed=seed,
            first=first,
            count=count,
            received_seconds=received_seconds,
        )
        if self._lines:
            last = self._lines[-1]
            same = int(received_seconds / self._slot) == int(last.received_seconds / self._slot)
            if same and last.count == count:
                record = replace(last, batches=last.batches + 1, received_seconds=received_seconds)
                self._lines.pop()
        self._lines.append(record)

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> tuple[BatchRecord, ...]:
        """The lines, in the order the batches came."""
        return tuple(self._lines)
