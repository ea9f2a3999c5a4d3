"""Where a dataset lies, among the forms it can have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddchallenge.datasets import cifar100, class_folders, digits, tinyimagenet
from ddchallenge.errors import MissingDataError
from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    from ddchallenge.datasets.reader import Reader

__all__ = ["find"]

_MODULES: Final = {"digits": digits, "cifar100": cifar100, "tinyimagenet": tinyimagenet}


def find(spec: DatasetSpec, folder: Path) -> Reader:
    """The dataset in ``folder``, which holds one of its forms or is itself one.

    Class folders are where they were said to be, whatever the ``folder``. Raises
    :class:`MissingDataError` saying what is expected where.
    """
    if spec.name not in _MODULES:
        return class_folders.find(spec)
    module = _MODULES[spec.name]
    reader: Reader | None = module.find(spec, folder)
    if reader is None:
        absent = "" if folder.is_dir() else " (there is no such folder)"
        raise MissingDataError(
            f"The {spec.name} data is not in {folder}{absent}.\n"
            f"Expected there one of: {'; '.join(module.EXPECTED)}.\n"
            f"Download it with `ddchallenge data fetch {spec.name}`, "
            "or point --data-dir or DDCHALLENGE_DATA at a folder that has it."
        )
    return reader
