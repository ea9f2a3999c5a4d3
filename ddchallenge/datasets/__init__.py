"""The datasets: what they are, where they lie, how they are loaded, fetched and verified.

================  ==========================================================================
``digits``        1797 scans of handwritten digits, inside scikit-learn: needs no download
``cifar100``      Krizhevsky 2009: official python archive, unpacked or not; or class folders
``tinyimagenet``  Stanford CS231n: official layout, as a folder or as the official zip
``folder:PATH``   any images in folders ``train/<class>`` and ``val/<class>`` of any size
================  ==========================================================================

Every split is decoded once into ``images.npy`` and ``labels.npy`` in a cache folder, class by
class and by file name within a class, whatever form the data has; so the same data has the same
digest everywhere.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ddchallenge.errors import RequestError, UnknownNameError
from ddchallenge.records import DatasetSpec, DatasetSplit, Source

if TYPE_CHECKING:
    import httpx

    from ddchallenge.datasets.acquire import Fetched, FetchProgress
    from ddchallenge.datasets.inspection import Availability, Verification
    from ddchallenge.datasets.reader import Split

__all__ = [
    "DATASETS",
    "availability",
    "cache_folder",
    "data_folder",
    "dataset_options",
    "fetch",
    "get_dataset",
    "load_split",
    "open_dataset",
    "verify",
]

_CLASSES = Path(__file__).parent / "classes"
_CLASS_FOLDERS: Final = "folder:"


def _lines(name: str) -> tuple[str, ...]:
    return tuple((_CLASSES / name).read_text(encoding="utf-8").splitlines())


_CIFAR100 = _lines("cifar100.txt")
_TINYIMAGENET = tuple(line.split("\t") for line in _lines("tinyimagenet.txt"))

DATASETS: Final[Mapping[str, DatasetSpec]] = MappingProxyType(
    {
        "digits": DatasetSpec(
            name="digits",
            class_ids=tuple("0123456789"),
            class_names=tuple("0123456789"),
            image_size=8,
            # Of the 1297 training images, all pixels together: the channels are equal.
            mean=(0.3049, 0.3049, 0.3049),
            std=(0.3757, 0.3757, 0.3757),
            # The smallest class; the classes have 126 to 132.
            training_images_per_class=126,
            test_images=500,
        ),
        "cifar100": DatasetSpec(
            name="cifar100",
            # The 100 fine labels in alphabetical order, which is the official numbering.
            class_ids=_CIFAR100,
            class_names=tuple(name.replace("_", " ") for name in _CIFAR100),
            image_size=32,
            mean=(0.5071, 0.4866, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            training_images_per_class=500,
            test_images=10_000,
            sources=(
                Source(
                    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                    filename="cifar-100-python.tar.gz",
                    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                    size=169_001_437,
                ),
            ),
        ),
        "tinyimagenet": DatasetSpec(
            name="tinyimagenet",
            # The sorted WordNet ids: the evaluator's numbering, not the order of wnids.txt.
            class_ids=tuple(wnid for wnid, _ in _TINYIMAGENET),
            # The first of WordNet's synonyms; the table has them all.
            class_names=tuple(synonyms.split(",")[0] for _, synonyms in _TINYIMAGENET),
            image_size=64,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            training_images_per_class=500,
            test_images=10_000,
            sources=(
                Source(
                    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    filename="tiny-imagenet-200.zip",
                    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
                    size=248_100_043,
                ),
            ),
        ),
    }
)


def get_dataset(name: str) -> DatasetSpec:
    """The dataset of that name.

    Raises :class:`UnknownNameError` with the choices, and :class:`RequestError` for the name of
    class folders, which does not say where they are.
    """
    from ddchallenge.datasets.class_folders import is_class_folders_name

    if is_class_folders_name(name):
        raise RequestError(
            f"{name} is a dataset of class folders; say where they are.\n"
            "Add --dataset folder:PATH, and --image-size if it was given before."
        )
    try:
        return DATASETS[name]
    except KeyError:
        raise UnknownNameError("dataset", name, [*DATASETS, f"{_CLASS_FOLDERS}PATH"]) from None


def open_dataset(reference: str, image_size: int | None = None) -> DatasetSpec:
    """The dataset of that name, or the class folders that ``folder:PATH`` refers to.

    ``image_size`` is the side in pixels the images of class folders are brought to; None for the
    side they all have, else 224.

    Raises :class:`UnknownNameError` with the choices, :class:`MissingDataError` where class folders
    are not there, :class:`DataError` where they make no dataset, and :class:`RequestError` for an
    ``image_size`` of a dataset that has its own.
    """
    if not reference.startswith(_CLASS_FOLDERS):
        spec = get_dataset(reference)
        if image_size not in (None, spec.image_size):
            raise RequestError(
                f"The images of {spec.name} have {spec.image_size} pixels, not {image_size}.\n"
                "--image-size is for class folders, --dataset folder:PATH."
            )
        return spec
    path = reference.removeprefix(_CLASS_FOLDERS)
    if not path:
        raise RequestError(f"Expected a path after {_CLASS_FOLDERS}, found none.")
    from ddchallenge.datasets.class_folders import open_class_folders

    return open_class_folders(Path(path), image_size)


def dataset_options(spec: DatasetSpec) -> str:
    """What a command needs to find the dataset of a bundle again: nothing, or its folder."""
    if spec.folder is None:
        return ""
    reference = shlex.quote(f"{_CLASS_FOLDERS}{spec.folder}")
    return f" --dataset {reference} --image-size {spec.image_size}"


def data_folder(data_dir: Path | None = None) -> Path:
    """Where datasets are looked for and downloaded to.

    ``data_dir`` if given, else the environment variable ``DDCHALLENGE_DATA``, else
    ``ddchallenge/data`` in the user's cache folder. It need not exist.
    """
    return _folder(data_dir, "DDCHALLENGE_DATA", "data")


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Where decoded tensors are kept.

    ``cache_dir`` if given, else the environment variable ``DDCHALLENGE_CACHE``, else
    ``ddchallenge/decoded`` in the user's cache folder. It need not exist, and may be deleted at
    any time: what is missing is decoded again.
    """
    return _folder(cache_dir, "DDCHALLENGE_CACHE", "decoded")


def _folder(chosen: Path | None, variable: str, default: str) -> Path:
    if chosen is None and os.environ.get(variable):
        chosen = Path(os.environ[variable])
    if chosen is not None:
        return chosen.expanduser()
    import platformdirs

    return platformdirs.user_cache_path("ddchallenge", appauthor=False) / default


def load_split(
    spec: DatasetSpec, split: Split, data_dir: Path | None = None, cache_dir: Path | None = None
) -> DatasetSplit:
    """A split as memory-mapped tensors, decoded on the first call and from the cache after it.

    The images are uint8 N×3×S×S and the labels int64 N, ordered by label and within a class by
    file name. The contents of the cache are checked against their digest on every load; a damaged
    or outdated entry is decoded again.

    Raises :class:`MissingDataError` where the dataset is not in ``data_folder(data_dir)``,
    :class:`DataError` where it is damaged, incomplete (a training set may have fewer images than
    the official one, but none of its classes may be empty) or not the official one,
    :class:`OutputError` where the cache folder cannot be written and :class:`StorageError` where
    its disk is full.
    """
    from ddchallenge.datasets import cache, locate

    source = locate.find(spec, data_folder(data_dir))
    return cache.load(spec, split, source, cache_folder(cache_dir))


def fetch(
    spec: DatasetSpec,
    data_dir: Path | None = None,
    on_progress: Callable[[FetchProgress], None] | None = None,
    *,
    client: httpx.Client | None = None,
) -> Fetched:
    """Download a dataset to ``data_folder(data_dir)``, unless it is there already.

    A download that broke off is gone on with. Raises :class:`DownloadError` when the server
    cannot be reached or keeps breaking off, :class:`DataError` when what came is not the official
    file, :class:`OutputError` when the folder cannot be written or holds an incomplete copy in the
    place of the new one, :class:`StorageError` when the disk is full.
    """
    from ddchallenge.datasets import acquire

    return acquire.fetch(spec, data_folder(data_dir), on_progress, client=client)


def verify(
    spec: DatasetSpec,
    data_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check a dataset to the last image: checksums, classes, counts, and that every image decodes.

    ``on_progress`` is told how many images are done, and of how many. Nothing is written. Raises
    :class:`MissingDataError` and :class:`DataError` as :func:`load_split` does.
    """
    from ddchallenge.datasets import inspection

    return inspection.verify(spec, data_folder(data_dir), on_progress)


def availability(spec: DatasetSpec, data_dir: Path | None = None) -> Availability:
    """Whether a dataset is there, in which form, and with how many images: for ``data list``.

    Looks at names and sizes only, raises nothing about the data: see ``Availability.problem``.
    """
    from ddchallenge.datasets import inspection

    return inspection.availability(spec, data_folder(data_dir))
