"""Which files a worker may see, as Landlock wants it said: what may be read, never what may not.

So a hidden folder is hidden by naming all its neighbours, and the neighbours of each folder above.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ddchallenge.datasets import cache_folder, data_folder
from ddchallenge.generator import submission_files
from ddchallenge.sampling.launchers import Places

__all__ = ["hidden_paths", "visible_paths"]

# Beside these a device file may be the disk the test set lies on.
_DEVICES: Final = (
    "null", "zero", "full", "random", "urandom",
    "nvidia*", "dri", "kfd", "dxg", "infiniband",
)  # fmt: skip
# Below the home folder: nothing a generator needs.
_SECRETS: Final = (
    ".ssh", ".aws", ".azure", ".config/gcloud", ".config/gh", ".docker", ".gnupg", ".kube",
    ".git-credentials", ".netrc", ".pypirc", ".cache/huggingface/token",
    ".cache/huggingface/stored_tokens", ".kaggle",
)  # fmt: skip
# Layers of images: a digits test set lies in those with scikit-learn.
_STORAGES: Final = (Path("/var/lib/containers"), Path("/var/lib/docker"))
# Links are followed in a data folder and in the folders in it: those in a third row may be a
# million images.
LINK_DEPTH: Final = 2


def hidden_paths(chosen: Iterable[Path], places: Places) -> tuple[Path, ...]:
    """What must not be read: data sets, caches, this and other runs' folders, credentials.

    ``chosen`` are further ones, those of ``places`` are among them. All resolved.
    """
    import platformdirs

    # digits comes with scikit-learn: its test images lie in the library.
    sklearn = find_spec("sklearn")
    library = Path(sklearn.origin).parent if sklearn and sklearn.origin else None
    usual = platformdirs.user_cache_path("ddchallenge", appauthor=False)
    data = [*chosen, *places.hidden, data_folder(), usual / "data"]
    found = [
        *data,
        *(target for folder in data for target in _linked(folder, LINK_DEPTH)),
        # Also where the environment names others: an earlier run may have decoded to it.
        usual,
        cache_folder(),
        places.working_dir.parent,
        *_other_runs(places.working_dir.parent),
        *_STORAGES,
        *(Path.home() / ".local/share" / name for name in ("containers", "docker")),
        *(Path.home() / name for name in _SECRETS),
        *([library / "datasets/data/digits.csv.gz"] if library else []),
    ]
    if home := os.environ.get("HF_HOME"):
        found += [Path(home) / "token", Path(home) / "stored_tokens"]
    # Path.resolve raises where links go round.
    return tuple(sorted({Path(os.path.realpath(path)) for path in found}))


def _linked(folder: Path, depth: int) -> list[Path]:
    """What links in a folder, and in folders in it, lead to; nothing that all programs need."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), Path.home(), Path("/usr"), Path("/proc")}
    above = {Path("/"), *needed, *(parent for path in needed for parent in path.parents)}
    found: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink():
                    target = Path(os.path.realpath(path))
                    if target not in above:
                        found.append(target)
                        # A folder may have links in it, whichever way one comes to it.
                        found += _linked(target, depth - 1) if depth > 1 else []
                elif depth > 1 and entry.is_dir():
                    found += _linked(path, depth - 1)
    except OSError:
        pass
    return found


def _other_runs(out: Path) -> list[Path]:
    """Where the images of other runs lie: beside this one, and where runs go by themselves."""
    found = [Path("runs").resolve()]
    try:
        with os.scandir(out.parent) as entries:
            for entry in entries:
                names = (f"{entry.path}/bundle", f"{entry.path}/spool.bin")
                if any(map(os.path.lexists, names)):
                    found.append(Path(entry.path))
    except OSError:
        pass
    return found


def visible_paths(
    places: Places, hidden: tuple[Path, ...], *, shared_memory: bool
) -> dict[str, list[str]]:
    """The arguments of :func:`~ddchallenge.sampling.launchers.sandbox.restrict`.

    ``places`` and ``hidden`` are resolved. Of the submission only the files that are in its digest
    are visible: compiled code in ``__pycache__`` would run in the place of its source.
    ``shared_memory`` says whether /dev/shm is the worker's own. Names can be listed everywhere,
    since a right to list a folder is one to list all below it, and without that nothing can be
    imported.
    """
    devices = Path("/dev")
    closed = {*hidden, places.submission}
    read = _all_but(Path("/"), {*closed, devices})
    package = Path(__file__).resolve().parents[2]
    needed = {Path(sys.prefix), Path(sys.base_prefix), package}
    for path in {path.resolve() for path in needed}:
        read += _all_but(path, {below for below in closed if path in below.parents})
    within = {path for path in hidden if places.submission in path.parents}
    for _, path in submission_files(places.submission):
        if within.isdisjoint((path, *path.parents)):
            read.append(path)
    if places.training_data is not None:
        read.append(places.training_data)
    names = (*_DEVICES, "shm") if shared_memory else _DEVICES
    write = [places.working_dir, *(path for name in names for path in devices.glob(name))]
    return {
        "listed": ["/"],
        "read": sorted({str(path) for path in read}),
        "write": [str(path) for path in write],
    }


def _all_but(top: Path, hidden: set[Path]) -> list[Path]:
    """The least that must be named to have all below ``top`` but ``hidden``."""
    above = {parent for path in hidden for parent in path.parents}
    found, waiting = [], [top]
    while waiting:
        path = waiting.pop()
        if path in hidden:
            continue
        if path not in above:
            found.append(path)
            continue
        try:
            # Links are left out: what they lead to is visible by itself, or not.
            with os.scandir(path) as entries:
                waiting += [Path(entry.path) for entry in entries if not entry.is_symlink()]
        except OSError:
            continue
    return found
