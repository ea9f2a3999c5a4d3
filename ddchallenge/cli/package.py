"""`package` and `check-package`: submissions as files to hand in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddchallenge.cli.output import echo, new_console, print_json, say
from ddchallenge.cli.parameters import PATH, with_json

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.packages import CheckedPackage, WrittenPackage

__all__ = ["check_package", "package"]

_SLOW_BYTES = 50_000_000
_SHOWN = 20


class _Size(click.ParamType):  # type: ignore[type-arg]  # not subscriptable before 8.5
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kMG]?)B?", str(value))
        count = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else 0
        if not 1 <= count <= 1e15:
            self.fail(f"{value!r} is no size such as 500k, 10M or 2G", param, ctx)
        return int(count)


@click.command()
@click.argument("submission")
@click.option("--out", type=PATH, metavar="FILE", help="[default: NAME.tar.gz]")
@click.option(
    "--allow",
    multiple=True,
    metavar="PATH",
    help="A file of the submission that goes in whatever its name, size and content. Repeatable.",
)
@click.option(
    "--max-size",
    type=_Size(),
    default="10M",
    show_default=True,
    help="Of a file that is not named; all of these together ten times that.",
)
@with_json
def package(
    submission: str, out: Path | None, allow: tuple[str, ...], max_size: int, as_json: bool
) -> None:
    """Put SUBMISSION, a name or a folder, into one file to hand in."""
    from ddchallenge.generator import find_submission
    from ddchallenge.jsonio import to_json
    from ddchallenge.packages import write_package

    found = find_submission(submission)
    target = out or Path(f"{found.name}.tar.gz")
    console = new_console()
    with _counting(console, found.name) as show:
        written = write_package(
            found,
            target,
            allow=[path.removeprefix("./") for path in allow],
            max_file_bytes=max_size,
            on_progress=show("packaging"),
        )
    if as_json:
        print_json(to_json(written))
        return
    for path, reason in written.left_out[:_SHOWN]:
        say(console, f"left out: {path} ({reason})", style="yellow")
    if (more := len(written.left_out) - _SHOWN) > 0:
        say(console, f"left out: {more:,} more files; --json lists all", style="yellow")
    if written.folder_digest != written.contents.digest:
        say(
            console,
            f"What was left out counts: runs of the folder record {written.folder_digest[:12]}..., "
            "those of the package the digest below.",
            style="yellow",
        )
    _show(written)


@click.command("check-package")
@click.argument("file", type=PATH)
@click.option("--extract", "target", type=PATH, metavar="DIR", help="New folder for its files.")
@click.option(
    "--max-size", type=_Size(), default="1G", show_default=True, help="Of all files together."
)
@with_json
def check_package(file: Path, target: Path | None, max_size: int, as_json: bool) -> None:
    """Validate a package without executing anything of it; --extract unpacks it after that."""
    import ddchallenge
    from ddchallenge import packages
    from ddchallenge.jsonio import to_json

    console = new_console()
    with _counting(console, file.name) as show:
        checked = packages.check_package(
            file, max_total_bytes=max_size, on_progress=show("checking")
        )
        if target is not None:
            packages.unpack(checked, target, on_progress=show("unpacking"))
    contents = checked.contents
    if as_json:
        print_json(
            {
                "path": str(file),
                "size": checked.size,
                "sha256": checked.sha256,
                "contents": to_json(contents),
                "named": list(checked.named),
                "extracted": None if target is None else str(target),
            }
        )
        return
    if contents.harness != ddchallenge.__version__:
        say(
            console,
            f"Packaged by ddchallenge {contents.harness}; this is {ddchallenge.__version__}.",
            style="yellow",
        )
    for path in checked.named:
        say(console, f"{path} is not what packages usually hold; have a look at it", style="yellow")
    _show(checked)
    if target is not None:
        echo(
            f"{target} holds it now. Run it with\n"
            f"  ddchallenge run --track generative --dataset {checked.submission.datasets[0]} "
            f"--submission {target}"
        )


@contextmanager
def _counting(console: Console, name: str) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A display for packages that take a while; small ones are done before it could be read."""
    from ddchallenge.report.live import counting

    with counting(console, name, "bytes") as display:

        def show(what: str) -> Callable[[int, int], None]:
            def progress(done: int, total: int) -> None:
                if total >= _SLOW_BYTES:
                    display(done, total, what=what)

            return progress

        yield show


def _show(found: WrittenPackage | CheckedPackage) -> None:
    contents = found.contents
    width = max(len(file.path) for file in contents.files)
    for file in contents.files:
        echo(f"  {file.path:<{width}}  {file.size:>13,}  {file.sha256[:12]}")
    echo(
        f"submission  {contents.submission}, {len(contents.files)} files, "
        f"{contents.total_bytes:,} bytes\n"
        f"digest      {contents.digest}  (results name it)\n"
        f"file        {found.path}, {found.size:,} bytes\n"
        f"sha256      {found.sha256}"
    )
