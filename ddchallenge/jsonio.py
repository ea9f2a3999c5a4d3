"""Frozen records to JSON and back, strictly: every field there, none too many, each of its type.

Only a field that is None by default may be missing: it came later than the file.

Knows what the records are made of and nothing more: ``str``, ``int``, ``float``, ``bool``,
``Literal``, ``X | None``, ``tuple[X, ...]``, ``tuple[X, Y]`` and records of these. May be imported
anywhere, like the records.
"""

from __future__ import annotations

import dataclasses
import json
import math
import stat
import types
import typing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar, get_args, get_origin

from ddchallenge.atomic import atomic_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "DocumentError",
    "from_json",
    "parse_json",
    "printable",
    "read_json",
    "to_json",
    "write_json",
]

# Longer than any text of a record; what a stranger's file holds beyond it is refused.
MAX_TEXT: Final = 10_000

RecordT = TypeVar("RecordT", bound="DataclassInstance")


class DocumentError(ValueError):
    """A JSON document that is not what it should be; the message names the place in it."""


def to_json(record: DataclassInstance) -> dict[str, Any]:
    """The record as plain dicts, lists, strings and numbers; tuples become lists, paths strings.

    Raises :class:`TypeError` for a value JSON has no form for, :class:`ValueError` for NaN and
    infinities.
    """
    return {
        field.name: _plain(getattr(record, field.name), field.name)
        for field in dataclasses.fields(record)
    }


def _plain(value: object, path: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}; only finite numbers are written")
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), f"{path}.{field.name}")
            for field in dataclasses.fields(value)
        }
    raise TypeError(f"{path} holds a {type(value).__name__}, which has no JSON form here")


def printable(text: str) -> str:
    """The text with what a terminal might obey, or no file can hold, shown as a question mark."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text[:MAX_TEXT])


def from_json(cls: type[RecordT], document: object, where: str) -> RecordT:
    """The record of type ``cls`` a document describes.

    ``where`` opens every message, for instance the file's name. Raises :class:`DocumentError`
    naming the path inside the document, such as ``sampling.seconds.load``.
    """
    try:
        return typing.cast("RecordT", _record(cls, document, ""))
    except DocumentError as error:
        raise DocumentError(f"{where}: {error}") from None


@cache
def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _record(cls: Any, value: object, path: str) -> Any:
    if not isinstance(value, dict):
        _refuse(path, "an object", value)
    fields = _fields(cls)
    later = {field.name for field in dataclasses.fields(cls) if field.default is None}
    missing = [_join(path, name) for name in fields if name not in value and name not in later]
    if missing:
        raise DocumentError(f"{_listed(missing)} missing")
    unknown = [_join(path, name) for name in value if name not in fields]
    if unknown:
        raise DocumentError(f"{_listed(unknown)} not known here")
    return cls(
        **{
            name: _value(hint, value[name], _join(path, name))
            for name, hint in fields.items()
            if name in value
        }
    )


def _value(hint: Any, value: object, path: str) -> Any:
    if hint is str:
        shown = isinstance(value, str) and value == printable(value)
        return value if shown else _refuse(path, "printable text", value)
    if hint is bool:
        return value if isinstance(value, bool) else _refuse(path, "true or false", value)
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole else _refuse(path, "a whole number", value)
    if hint is float:
        return _number(value, path)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record(hint, value, path)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        # 1 == True == 1.0 in Python, so the type has to agree too.
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        _refuse(path, "one of " + ", ".join(map(repr, arguments)), value)
    if origin is tuple:
        return _tuple(arguments, value, path)
    if origin in (typing.Union, types.UnionType):
        present = [argument for argument in arguments if argument is not type(None)]
        if len(present) == 1 and len(arguments) == 2:
            return None if value is None else _value(present[0], value, path)
    raise TypeError(f"{path}: records may not hold {hint}")


def _number(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(path, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _refuse(path, "a finite number", value)
    return number


def _tuple(arguments: tuple[Any, ...], value: object, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        _refuse(path, "a list", value)
    if arguments[-1] is Ellipsis:
        hints = [arguments[0]] * len(value)
    elif len(arguments) == len(value):
        hints = list(arguments)
    else:
        raise DocumentError(f"{path}: expected a list of {len(arguments)}, found {len(value)}")
    return tuple(
        _value(hint, item, f"{path}[{i}]")
        for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _listed(paths: list[str]) -> str:
    shown = ", ".join(_short(path) for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
    return f"{shown} {'is' if len(paths) == 1 else 'are'}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(path: str, expected: str, value: object) -> NoReturn:
    if isinstance(value, dict | list):
        found = "an object" if isinstance(value, dict) else "a list"
    else:
        found = _short(json.dumps(value))
    raise DocumentError(f"{path or 'the document'}: expected {expected}, found {found}")


def read_json(path: Path, max_bytes: int) -> Any:
    """The parsed content of a JSON file of at most ``max_bytes``.

    Strict JSON: no NaN, no key twice. Raises :class:`DocumentError` for anything else, for links
    and special files, and for a file that cannot be read.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise DocumentError(f"{path} is not a plain file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise DocumentError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > max_bytes:
        raise DocumentError(f"{path} is larger than the {max_bytes} bytes allowed")
    return parse_json(content, str(path))


def parse_json(content: bytes, where: str) -> Any:
    """Strict JSON as :func:`read_json` reads it; ``where`` opens the message of an error.

    Raises :class:`DocumentError`.
    """
    try:
        return json.loads(content, parse_constant=_no_constant, object_pairs_hook=_unique)
    # RecursionError: brackets nested thousands deep.
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where} is not valid JSON ({error})") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"{_short(name)!r} is there twice")
        document[name] = value
    return document


def write_json(path: Path, document: object) -> None:
    """Writes a document atomically, indented, keys in the order given, ending in a newline.

    Raises :class:`ValueError` for NaN and infinities, :class:`OutputError` or
    :class:`StorageError` where it cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        # What UTF-8 cannot hold (half a surrogate pair, from an odd file name) becomes \udc80,
        # which JSON reads back as the same text.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
