"""Which box a generator runs in, and how much of the machine it may take."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypedDict

import click

from ddchallenge.errors import RequestError, UnknownNameError

if TYPE_CHECKING:
    from ddchallenge.records import Limits
    from ddchallenge.sampling.launchers import Launcher

__all__ = ["LaunchOptions", "launch_options", "launcher_of"]

_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


class _Size(click.ParamType):  # type: ignore[type-arg]  # not subscriptable before 8.5
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(?:i?b)?", str(value).lower())
        size = int(float(match[1]) * (1 << _UNITS[match[2]])) if match else 0
        if not 0 < size < 1 << 60:
            self.fail(f"{value!r} is no size such as 500m, 16g or 16GiB (powers of 1024)")
        return size


class LaunchOptions(TypedDict):
    """What a command below :data:`launch_options` is given; None where nothing was said."""

    launcher: str
    engine: str | None
    memory: int | None
    disk: int | None
    processes: int | None
    cpus: float | None


launch_options: Final = (
    click.option(
        "--launcher",
        default="process",
        show_default=True,
        metavar="L",
        help="The box it runs in: process or container.",
    ),
    click.option("--engine", metavar="E", help="Of --launcher container: docker or podman."),
    click.option(
        "--memory",
        type=_Size(),
        help="What all of it may hold, such as 16g.  [default: nine tenths of this machine's]",
    ),
    click.option("--disk", type=_Size(), help="What it may write.  [default: 16g]"),
    click.option(
        "--processes",
        type=click.IntRange(min=1, max=1 << 22),
        help="Processes and threads it may have.  [default: 4096]",
    ),
    click.option(
        "--cpus",
        type=click.FloatRange(min=0, min_open=True, max=4096),
        help="Processors it may use.  [default: all]",
    ),
)


def _process(limits: Limits, engine: str | None, data_dir: Path | None) -> Launcher:
    from ddchallenge.sampling.launchers.process import ProcessLauncher

    if engine is not None:
        raise RequestError("--engine goes with --launcher container; add it, or leave both out.")
    return ProcessLauncher(limits, hidden=() if data_dir is None else (data_dir,))


def _container(limits: Limits, engine: str | None, data_dir: Path | None) -> Launcher:
    from ddchallenge.sampling.launchers.container import ContainerLauncher
    from ddchallenge.sampling.launchers.engine import ENGINES

    del data_dir  # nothing of this machine is in a container that was not put there
    chosen = next((name for name in ENGINES if name == engine), None)
    if engine is not None and chosen is None:
        raise UnknownNameError("engine", engine, ENGINES)
    return ContainerLauncher(limits, chosen)


_LAUNCHERS: Final[Mapping[str, Callable[[Limits, str | None, Path | None], Launcher]]] = (
    MappingProxyType({"process": _process, "container": _container})
)


def launcher_of(options: LaunchOptions, data_dir: Path | None) -> Launcher:
    """The box that was asked for; ``data_dir`` cannot be read in it.

    Raises :class:`RequestError` for one there is none of, and for more than this machine has.
    """
    from ddchallenge.sampling.launchers import default_limits

    make = _LAUNCHERS.get(options["launcher"])
    if make is None:
        raise UnknownNameError("launcher", options["launcher"], _LAUNCHERS)
    limits = default_limits()
    chosen: dict[str, Any] = {
        "memory_bytes": options["memory"],
        "disk_bytes": options["disk"],
        "processes": options["processes"],
        "cpus": options["cpus"],
    }
    _check_disk(options["disk"])
    limits = replace(limits, **{k: v for k, v in chosen.items() if v is not None})
    return make(limits, options["engine"], data_dir)


def _check_disk(limit: int | None) -> None:
    """Refuse what was asked for and is not free: where runs are written by default, and temporary.

    The largest of them is taken, since ``--out`` may lead to either.
    """
    if limit is None:
        return
    places = (Path.cwd(), Path(tempfile.gettempdir()))
    free = max(shutil.disk_usage(place).free for place in places)
    if limit > free:
        raise RequestError(
            f"A disk limit of {limit / (1 << 30):,.1f} GiB is above the "
            f"{free / (1 << 30):,.1f} GiB that are free here.\nName less, or leave it out."
        )
