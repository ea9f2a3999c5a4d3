"""Results on disk, and the ranking made of them.

A result is a file, ``results/<dataset>.<protocol>.json`` beside its submission; the leaderboard is
the sum of those files, so git is its database and a pull request its upload.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddchallenge.errors import OutputError, RequestError
from ddchallenge.generator import Submission
from ddchallenge.jsonio import DocumentError, from_json, read_json, to_json, write_json
from ddchallenge.records import Result

__all__ = [
    "Leaderboard",
    "Row",
    "check_recordable",
    "collect",
    "read_result",
    "record_path",
    "result_document",
    "write_result",
]

MAX_RESULT_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One line: ``rank`` is None for reference lines and unofficial results."""

    rank: int | None
    result: Result
    path: Path


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Rows grouped by dataset, track and protocol, best first; and files that are no results."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]


def result_document(result: Result) -> dict[str, object]:
    """A result as the JSON document of ``result.json``."""
    return to_json(result)


def write_result(path: Path, result: Result) -> None:
    """Write ``result.json`` atomically. Raises :class:`OutputError` or :class:`StorageError`."""
    write_json(path, result_document(result))


def read_result(path: Path) -> Result:
    """Read and validate a result file. Raises :class:`RequestError` naming what is wrong in it."""
    try:
        result = from_json(Result, read_json(path, MAX_RESULT_BYTES), "it")
    except DocumentError as error:
        raise RequestError(f"{path} is not a result: {error}") from None
    if result.schema != 1:
        raise RequestError(f"{path} has result schema {result.schema}; this version reads 1.")
    return result


def record_path(submission: Submission, dataset: str, protocol: str) -> Path:
    """Where a result of a submission is recorded."""
    return submission.folder / "results" / f"{dataset}.{protocol}.json"


def check_recordable(path: Path, *, official: bool) -> None:
    """Raise :class:`OutputError` where recording would put an unofficial result over another."""
    if official or not path.exists():
        return
    if read_result(path).protocol.official:
        raise OutputError(
            f"{path} holds an official result, and this run is not one.\n"
            "Leave --record out, or run with the protocol's own epochs and seeds."
        )


def collect(folders: Iterable[Path]) -> Leaderboard:
    """Every ``*.json`` in the given folders that is a result, ranked.

    Ranked among themselves: official results of ranked submissions with the same dataset, track
    and protocol, by mean accuracy. The others stand in the same order without a rank.
    """
    results: list[tuple[Result, Path]] = []
    problems = []
    for path in sorted({p for folder in folders for p in folder.glob("*.json")}):
        try:
            results.append((read_result(path), path))
        except RequestError as error:
            problems.append(str(error))
    results.sort(key=lambda item: (*_group(item[0]), -item[0].accuracy.mean, str(item[1])))
    rows = []
    last_group: tuple[str, str, str] | None = None
    rank = 0
    for result, path in results:
        if _group(result) != last_group:
            last_group, rank = _group(result), 0
        counts = result.ranked and result.protocol.official
        rank += counts
        rows.append(Row(rank if counts else None, result, path))
    return Leaderboard(tuple(rows), tuple(problems))


def _group(result: Result) -> tuple[str, str, str]:
    return result.dataset, result.track, result.protocol.id
