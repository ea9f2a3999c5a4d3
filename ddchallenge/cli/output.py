"""What commands write: JSON and tables on stdout, all else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["echo", "new_console", "print_json", "printed_json", "say", "waiting"]

printed_json: list[bool] = []  # --json promises one document, also when a later step fails


class _Tolerant:
    """A text stream; once nobody reads it (`| head`) or it is full, what is written is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable[[], int | None]) -> int:
        try:
            return do() or 0
        except OSError:
            # What Python still holds goes there too, or it would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def new_console(*, err: bool = True) -> Console:
    """A console on stderr, where progress and remarks go, or else on stdout."""
    from rich.console import Console

    console = Console(file=cast("IO[str]", _Tolerant(sys.stderr if err else sys.stdout)))
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge to wrap at
    return console


def say(console: Console, text: str, style: str | None = None) -> None:
    """A line as it is: nothing in it is markup, and it is wrapped by the terminal only.

    What a terminal might obey is shown as a question mark: names and reasons are strangers' words.
    """
    from ddchallenge.jsonio import printable

    console.print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)


def echo(text: str, *, err: bool = False) -> None:
    """A plain line on stdout, or on stderr."""
    stream = cast("IO[str]", _Tolerant(sys.stderr if err else sys.stdout))
    click.echo(text, file=stream)


def print_json(document: object) -> None:
    """The one document that ``--json`` promises on stdout."""
    echo(json.dumps(document, indent=1, allow_nan=False))
    printed_json.append(True)


@contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal for what takes seconds; silence elsewhere."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        yield
