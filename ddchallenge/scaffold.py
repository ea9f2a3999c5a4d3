"""``ddchallenge new``: a working submission to edit."""

from __future__ import annotations

import re
from importlib.resources import as_file, files
from pathlib import Path
from string import Template

from ddchallenge.atomic import atomic_folder
from ddchallenge.errors import RequestError
from ddchallenge.generator import is_name

__all__ = ["new_submission"]


def new_submission(name: str, parent: Path) -> Path:
    """Write a submission folder ``parent/name`` that runs as it is.

    Raises :class:`RequestError` for a name that is none, :class:`OutputError` where the folder
    exists or cannot be written.
    """
    if not is_name(name):
        raise RequestError(
            f"{name!r} is no name for a submission: small letters, digits, - and _, at most 64."
        )
    target = parent / name
    class_name = "".join(part.capitalize() for part in re.split(r"[-_]", name))
    if not class_name[:1].isalpha():
        class_name = f"Generator{class_name}"
    with atomic_folder(target) as folder, as_file(files("ddchallenge") / "template") as template:
        for source in sorted(template.iterdir()):
            if source.is_file():
                text = Template(source.read_text(encoding="utf-8"))
                filled = text.substitute(name=name, class_name=class_name)
                (folder / source.name.removesuffix(".in")).write_text(filled, encoding="utf-8")
    return target
