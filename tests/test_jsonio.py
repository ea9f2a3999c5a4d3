"""Records to JSON and back: strictly, with the path of what is wrong."""

import json
import os
from dataclasses import dataclass
from typing import Literal

import pytest

from ddchallenge.jsonio import DocumentError, from_json, printable, read_json, to_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    seconds: float
    kind: Literal["a", "b", 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int
    ranked: bool
    note: str | None
    span: tuple[int, int]
    inner: Inner
    others: tuple[Inner, ...]
    maybe: Inner | None = None


RECORD = Outer(
    name="ü×\n字",
    count=2**53 + 1,
    ranked=False,
    note=None,
    span=(1, 2),
    inner=Inner(seconds=0.1, kind="a"),
    others=(Inner(seconds=1e-300, kind=1), Inner(seconds=3.0, kind="b")),
    maybe=Inner(seconds=0.5, kind="b"),
)


def changed(path, value):
    document = to_json(RECORD)
    *above, last = path
    place = document
    for step in above:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def test_a_record_comes_back_equal_through_a_file(tmp_path):
    """Every kind of field survives a file bit for bit, odd text included."""
    write_json(tmp_path / "record.json", to_json(RECORD))
    assert from_json(Outer, read_json(tmp_path / "record.json", 10_000), "it") == RECORD
    assert json.loads((tmp_path / "record.json").read_bytes()) == to_json(RECORD)


@pytest.mark.parametrize("text", ["\x1b[2J", "a\x00", "\ud800", "x" * 10_001])
def test_text_a_terminal_might_obey_is_refused(text):
    """Escape sequences, half characters and endless text come in no record from a file."""
    with pytest.raises(DocumentError, match="name: expected printable text"):
        from_json(Outer, changed(["name"], text), "it")
    assert from_json(Outer, changed(["name"], printable(text)), "it").name


def test_only_what_is_none_by_default_may_be_missing():
    """A field that came later is None in an older file; any other missing one is refused."""
    assert from_json(Outer, changed(["maybe"], ...), "it").maybe is None
    assert from_json(Outer, changed(["maybe"], None), "it").maybe is None
    with pytest.raises(DocumentError, match="note is missing"):  # may be None, but must be said
        from_json(Outer, changed(["note"], ...), "it")


def test_a_whole_number_is_a_number_too():
    """JSON writers drop ``.0``; a float field takes a whole number and stays a float."""
    record = from_json(Outer, changed(["inner", "seconds"], 3), "it")
    assert record.inner.seconds == 3.0
    assert type(record.inner.seconds) is float


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["name"], 3, "it: name: expected printable text, found 3"),
        (["name"], ..., "it: name is missing"),
        (["extra"], 1, "it: extra is not known here"),
        (["count"], True, "it: count: expected a whole number, found true"),
        (["count"], 1.0, "it: count: expected a whole number, found 1.0"),
        (["ranked"], 0, "it: ranked: expected true or false, found 0"),
        (["note"], [], "it: note: expected printable text, found a list"),
        (["span"], [1], "it: span: expected a list of 2, found 1"),
        (["span", 1], "x", 'it: span[1]: expected a whole number, found "x"'),
        (["inner"], None, "it: inner: expected an object, found null"),
        (["inner", "seconds"], ..., "it: inner.seconds is missing"),
        (["inner", "seconds"], "x" * 99, "it: inner.seconds: expected a number, found"),
        (["inner", "seconds"], 10**400, "it: inner.seconds: expected a finite number"),
        (["inner", "seconds"], True, "it: inner.seconds: expected a number, found true"),
        (["inner", "kind"], "c", "it: inner.kind: expected one of 'a', 'b', 1, found \"c\""),
        (["others", 1, "kind"], True, "it: others[1].kind: expected one of 'a', 'b', 1, found tr"),
        (["others"], {}, "it: others: expected a list, found an object"),
        (["maybe", "seconds"], None, "it: maybe.seconds: expected a number, found null"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(path, value, message):
    """Missing, extra and wrongly typed values name where they are and what was expected."""
    with pytest.raises(DocumentError) as error:
        from_json(Outer, changed(path, value), "it")
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": 1', "not valid JSON"),
        (b"\xff\xfe\xfa", "not valid JSON"),
        (b"[" * 90_000, "not valid JSON"),
        (b"1" * 6000, "not valid JSON"),
        (b" " * 100_001, "larger than the 100000 bytes"),
    ],
)
def test_files_that_are_not_strict_json_are_refused(tmp_path, content, message):
    """NaN, repeated keys, cut or deeply nested text, giant numbers and giant files raise."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read_json(path, 100_000)


def test_links_pipes_and_nothing_are_refused(tmp_path):
    """A link could point anywhere and a named pipe would block for ever."""
    (tmp_path / "link").symlink_to(__file__)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(DocumentError, match="not a plain file"):
            read_json(tmp_path / name, 100)
    with pytest.raises(DocumentError, match="cannot be read"):
        read_json(tmp_path / "nothing", 100)


def test_what_json_cannot_hold_is_not_written(tmp_path):
    """NaN and foreign objects raise before anything is on disk; the old file stays."""
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(ValueError, match="seconds is nan"):
        to_json(Inner(seconds=float("nan"), kind="a"))
    with pytest.raises(TypeError, match="seconds holds a set"):
        to_json(Inner(seconds={1}, kind="a"))
    assert read_json(path, 100) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
