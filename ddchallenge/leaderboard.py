"""Results on disk, and the ranking made of them.

A result is a file, ``results/<dataset>.<protocol>.json`` beside its submission, one with a scaled
budget ``results/<dataset>.<protocol>.<device>.json``; the leaderboard is the sum of those files, so
git is its database and a pull request its upload.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ddchallenge.datasets.class_folders import is_class_folders_name
from ddchallenge.errors import OutputError, RequestError
from ddchallenge.generator import Submission
from ddchallenge.jsonio import DocumentError, from_json, read_json, to_json, write_json
from ddchallenge.marks import cost_the_rank
from ddchallenge.records import RESULT_SCHEMA, EquivalentBudget, Result

__all__ = [
    "Leaderboard",
    "Row",
    "check_recordable",
    "collect",
    "counts_as_official",
    "group_of_tests",
    "hardware_of",
    "read_result",
    "record_path",
    "result_document",
    "write_result",
]

# Results recorded by earlier versions stay readable, and can be got again, from this one on.
OLDEST_SCHEMA: Final = 2
MAX_RESULT_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One line: ``rank`` is None for reference lines and unofficial results."""

    rank: int | None
    result: Result
    path: Path


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Rows grouped by test set, track, protocol and the hardware their images were made on, best
    first; and files that are no results."""

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
        document = read_json(path, MAX_RESULT_BYTES)
        schema = document.get("schema") if isinstance(document, dict) else None
        if isinstance(schema, int) and not OLDEST_SCHEMA <= schema <= RESULT_SCHEMA:
            raise RequestError(
                f"{path} has result schema {schema}; this version reads {OLDEST_SCHEMA} to "
                f"{RESULT_SCHEMA}.\n" + _other_schema(schema)
            )
        return from_json(Result, _upgraded(document), str(path))
    except DocumentError as error:
        if not path.exists():
            raise RequestError(
                f"There is no result at {path}: `ddchallenge score` and `run` write result.json."
            ) from None
        raise RequestError(f"{error} (not a result of this version?)") from None


def _upgraded(document: object) -> object:
    """A document of the oldest schema as one of this: what it left out stands in its marks.

    Whatever else is wrong with it is for :func:`from_json` to say.
    """
    if not isinstance(document, dict) or document.get("schema") != OLDEST_SCHEMA:
        return document
    sampling, marks = document.get("sampling"), document.get("marks")
    if isinstance(sampling, dict):
        said = " ".join(map(str, marks)) if isinstance(marks, list) else ""
        match = re.search(r"\bat most (\d{1,18}) images\b", said)
        sampling = {**sampling, "max_images": int(match[1]) if match else None}
    return {**document, "schema": RESULT_SCHEMA, "sampling": sampling}


def _other_schema(schema: int) -> str:
    if schema > RESULT_SCHEMA:
        return "A later version wrote it: bring ddchallenge up to date."
    return "An earlier version wrote it: score the bundle again with `ddchallenge score`."


def record_path(
    submission: Submission, dataset: str, protocol: str, scaled: EquivalentBudget | None = None
) -> Path:
    """Where a result of a submission is recorded; never over one that had another's budget."""
    budget = "" if scaled is None else f".{scaled.device}"
    return submission.folder / "results" / f"{dataset}.{protocol}{budget}.json"


def counts_as_official(result: Result) -> bool:
    """Whether a result was got by the rules: the whole protocol, the budget, the clock."""
    return result.protocol.official and not cost_the_rank(result.marks)


def check_recordable(path: Path, *, official: bool) -> None:
    """Raise :class:`OutputError` where recording would put an unofficial result over another."""
    if official or not path.exists():
        return
    if counts_as_official(read_result(path)):
        raise OutputError(
            f"{path} holds an official result, and this run is not one.\n"
            "Leave --record out, or use the track's budget and the protocol's epochs and seeds."
        )


def collect(submissions: Iterable[Submission], folders: Iterable[Path] = ()) -> Leaderboard:
    """The results recorded beside submissions, and those in other folders, ranked.

    ``folders`` are searched for ``*.json`` and, run folders being what they are, for
    ``*/result.json``. Ranked among themselves: official results of ranked submissions with the
    same dataset, test images, track, protocol and :func:`hardware_of`, by mean accuracy. The others
    stand in the same order without a rank. A result beside a submission of another name is left
    out (a copied folder); one of another version of the submission is marked.
    """
    found: list[tuple[Result, Path]] = []
    problems: list[str] = []

    def read(path: Path, submission: Submission | None) -> None:
        try:
            result = read_result(path)
            if submission is not None:
                result = _of_submission(result, path, submission)
            found.append((result, path))
        except RequestError as error:
            problems.append(str(error))

    for submission in submissions:
        for path in sorted((submission.folder / "results").glob("*.json")):
            read(path, submission)
    for folder in folders:
        paths = sorted({*folder.glob("*.json"), *folder.glob("*/result.json")})
        if not paths:
            problems.append(f"{folder} holds no result: neither *.json nor */result.json")
        for path in paths:
            read(path, None)
    return Leaderboard(_ranked(found), tuple(problems))


def _of_submission(result: Result, path: Path, submission: Submission) -> Result:
    if result.submission.name != submission.name:
        raise RequestError(
            f"{path} is a result of {result.submission.name}, not of {submission.name}: "
            "remove it if the folder was copied"
        )
    if result.submission.digest != submission.identity.digest:
        changed = "the submission has changed since"
        return replace(result, marks=(*result.marks, changed))
    return result


def _ranked(found: list[tuple[Result, Path]]) -> tuple[Row, ...]:
    found.sort(key=lambda item: (*_group(item[0]), -item[0].accuracy.mean, str(item[1])))
    rows = []
    last_group: tuple[str, ...] | None = None
    rank = 0
    for result, path in found:
        if _group(result) != last_group:
            last_group, rank = _group(result), 0
        counts = result.ranked and counts_as_official(result)
        rank += counts
        rows.append(Row(rank if counts else None, result, path))
    return tuple(rows)


def _group(result: Result) -> tuple[str, ...]:
    where = hardware_of(result)
    return result.dataset, group_of_tests(result), result.track, result.protocol.id, where


def hardware_of(result: Result) -> str:
    """What the images were made on under a clock, or its equivalent; "" where there was no clock.

    Ten minutes of one machine are not those of another: ranks are among the same hardware, or,
    with budgets scaled by the same table, to the same device.
    """
    log = result.sampling
    if log is None:
        return ""
    if log.equivalent is not None:
        return f"the equivalent of {log.equivalent.device} ({log.equivalent.table})"
    return log.hardware


def group_of_tests(result: Result) -> str:
    """What tells test sets of one name apart: eight hex digits for class folders, else nothing.

    The others are known to be what their name says; of two people's folders only the classes are.
    """
    named = not is_class_folders_name(result.dataset)
    return "" if named else result.provenance.test_digest[:8]
