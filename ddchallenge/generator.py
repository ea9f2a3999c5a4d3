"""The contract of a generator, and how a submission is described and found.

A submission is a folder::

    submissions/<name>/
      submission.toml    what it is, and where its generator lies
      generate.py        the generator, or a script that writes a tensor file by itself
      README.md          for people
      results/           recorded results, one JSON file for each dataset and protocol
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from ddchallenge.datasets import DATASETS
from ddchallenge.errors import RequestError, SubmissionError, UnknownNameError
from ddchallenge.records import (
    DatasetSpec,
    GenerationTask,
    OptionValue,
    SubmissionIdentity,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "CONFIG_NAME",
    "DEFAULT_SUBMISSION",
    "Command",
    "Generator",
    "ListedSubmission",
    "Submission",
    "find_submission",
    "is_name",
    "is_python",
    "list_submissions",
    "read_submission",
    "require_dataset",
    "submission_files",
]

DEFAULT_SUBMISSION: Final = "gaussian"
ENTRY_POINT_GROUP: Final = "ddchallenge.submissions"
# Among the datasets of a submission: whatever --dataset folder:PATH may hold.
CLASS_FOLDERS: Final = "folder"
CONFIG_NAME: Final = "submission.toml"
# What is hashed before the clock starts; a file of over HOLES_BYTES must be there in earnest.
MAX_FOLDER_BYTES: Final = 64 << 30
HOLES_BYTES: Final = 1 << 30
MAX_CONFIG_BYTES: Final = 32 * 1024  # with two paths it fits into a pipe at once
# What Python, git and file browsers leave in a folder.
_CACHES: Final = frozenset({"__pycache__", ".git", ".DS_Store", ".ipynb_checkpoints"})
# What holds numbers that were learned somewhere, and no code of the submission's.
_WEIGHTS: Final = frozenset(
    {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".onnx", ".gguf", ".h5"}
)
MAX_BATCH_SIZE: Final = 65_536
DATASET_FIELD: Final = "{dataset}"


@runtime_checkable
class Generator(Protocol):
    """What an entry point must make when called without arguments.

    It lives in a process of its own, under the clock from before that process exists.
    """

    def setup(self, task: GenerationTask) -> None:
        """Load weights, fit, compile: whatever comes once, before the first batch."""

    def generate(self, labels: NDArray[np.int64], seed: int) -> NDArray[np.uint8] | torch.Tensor:
        """One image for each label: uint8 N×3×H×W pixels, H = W = the dataset's image size.

        ``labels`` is int64 of shape N, values 0..classes-1. ``seed`` is 0..2^32-1. The same
        labels and seed must give the same images, so that any batch can be generated again.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program that writes an official tensor file into its working folder, all by itself.

    ``arguments`` begin with the program. ``output`` and ``labels`` are plain file names: N×3×S×S
    images and, unless they are class-major, N labels. ``{dataset}`` in any of them stands for the
    name of the data set.
    """

    arguments: tuple[str, ...]
    output: str
    labels: str | None

    def on(self, spec: DatasetSpec) -> Command:
        """The same command, made out to one data set."""
        named = [text.replace(DATASET_FIELD, spec.name) for text in (*self.arguments, self.output)]
        labels = self.labels and self.labels.replace(DATASET_FIELD, spec.name)
        return Command(arguments=tuple(named[:-1]), output=named[-1], labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A validated ``submission.toml``.

    It has an ``entry_point`` or a ``command``; the other is empty or None. ``images_per_class`` is
    how many images a class the entrant wants to hand in, None for as many as the budget allows.
    ``ranked`` is false for reference lines.
    """

    folder: Path
    name: str
    authors: tuple[str, ...]
    entry_point: str
    command: Command | None
    datasets: tuple[str, ...]
    needs_training_data: bool
    augmentation: str
    batch_size: int
    images_per_class: int | None
    contains_real_images: bool
    ranked: bool
    options: Mapping[str, OptionValue]

    @property
    def identity(self) -> SubmissionIdentity:
        """Name and digest; see :func:`is_digested` for what the digest covers."""
        return SubmissionIdentity(name=self.name, digest=folder_digest(self.folder))

    @property
    def weights_digest(self) -> str | None:
        """The same digest over its weight files alone, by their suffixes; None if it has none.

        They are in the identity's digest, too: this one stays when only code changes.
        """
        files = list(submission_files(self.folder))
        weights = [(name, path) for name, path in files if path.suffix in _WEIGHTS]
        return files_digest(_with_contents(weights)) if weights else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSubmission:
    """One line of ``ddchallenge submissions``: a submission, or why it cannot be used."""

    name: str
    folder: Path
    submission: Submission | None
    problem: str | None


# ------------------------------------------------------------------------------ submission.toml


class _Lines:
    """Where each key of a TOML file stands, for messages that point at a line."""

    _TABLE = re.compile(r"^\s*\[\s*([\w.-]+)\s*\]")
    _KEY = re.compile(r"""^\s*["']?([\w-]+)["']?\s*=""")

    def __init__(self, text: str) -> None:
        self._at: dict[tuple[str, str], int] = {}
        table = ""
        for number, line in enumerate(text.splitlines(), start=1):
            if match := self._TABLE.match(line):
                table = match[1]
                self._at.setdefault(("", table), number)
            elif match := self._KEY.match(line):
                self._at.setdefault((table, match[1]), number)

    def of(self, key: str, table: str = "") -> int | None:
        return self._at.get((table, key))


_REQUIRED: Final = object()


def _name(value: Any) -> str:
    if isinstance(value, str) and is_name(value):
        return value
    raise ValueError("a name of small letters, digits, - and _, at most 64 characters")


def is_name(text: str) -> bool:
    """Whether a submission may be called so: small letters, digits, - and _, at most 64."""
    return re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", text) is not None


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    raise ValueError('a list of texts such as ["A. Author", "B. Author"]')


def _datasets(value: Any) -> tuple[str, ...]:
    names = _texts(value) if isinstance(value, list) and value else ()
    choices = (*DATASETS, CLASS_FOLDERS)
    if not names or not set(names) <= set(choices) or len(set(names)) != len(names):
        raise ValueError(f"a list of different names out of {', '.join(choices)}")
    return names


def _entry_point(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*:[A-Za-z_]\w*", value):
        return value
    raise ValueError('"module:Class", the module being a .py file beside submission.toml')


def _command(value: Any) -> tuple[str, ...]:
    try:
        arguments = _texts(value)
    except ValueError:
        arguments = ("\0",)
    if any("\0" in argument for argument in arguments):
        raise ValueError('a list of texts, the program first, such as ["python", "submit.py"]')
    return arguments


def _file_name(value: Any) -> str:
    # Letters, digits, _ . - and {dataset}: nothing that could lead out of the working folder.
    if isinstance(value, str) and len(value) <= 100:
        plain = value.replace(DATASET_FIELD, "dataset")
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", plain):
            return value
    raise ValueError('a plain file name such as "cifar100.pt" or "{dataset}.pt", without a folder')


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _count(most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
            return value
        raise ValueError(f"a whole number from 1 to {most}")

    return parse


def _plan(value: Any) -> str:
    from ddchallenge.augment import PLANS

    if isinstance(value, str) and value in PLANS:
        return value
    raise ValueError(f"one of {', '.join(PLANS)}")


def _options(value: Any) -> Mapping[str, OptionValue]:
    if not isinstance(value, dict):
        raise ValueError("a table")
    options: dict[str, OptionValue] = {}
    for key, item in value.items():
        if isinstance(item, list) and all(isinstance(v, str | int | float | bool) for v in item):
            options[key] = tuple(item)
        elif isinstance(item, str | int | float | bool):
            options[key] = item
        else:
            raise ValueError(f"a table of texts, numbers, flags and lists of them ({key} is not)")
    return MappingProxyType(options)


_SCHEMA: Final[Mapping[str, tuple[Callable[[Any], Any], Any]]] = {
    "name": (_name, _REQUIRED),
    "authors": (_texts, _REQUIRED),
    "entry_point": (_entry_point, ""),
    "command": (_command, None),
    "output": (_file_name, None),
    "labels": (_file_name, None),
    "datasets": (_datasets, _REQUIRED),
    "needs_training_data": (_flag, False),
    "augmentation": (_plan, "none"),
    "batch_size": (_count(MAX_BATCH_SIZE), 64),
    "images_per_class": (_count(1_000_000), None),
    "contains_real_images": (_flag, False),
    "ranked": (_flag, True),
    "options": (_options, MappingProxyType({})),
}


def read_submission(folder: Path) -> Submission:
    """Read and validate ``folder/submission.toml``; nothing of the submission is executed.

    Raises :class:`SubmissionError` that names the file and the line.
    """
    path = folder / CONFIG_NAME
    try:
        text = _config_text(path)
    except FileNotFoundError:
        raise SubmissionError(
            f"{folder} holds no {CONFIG_NAME}, so it is not a submission.\n"
            "`ddchallenge new NAME` makes one to edit."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SubmissionError(f"{path} cannot be read: {error}") from None
    return parse_submission(text, path, lambda name: (folder / name).is_file())


def _config_text(path: Path) -> str:
    # A pipe would be waited for, and opening a device may do something.
    if not stat.S_ISREG(path.stat().st_mode):
        raise SubmissionError(f"{path} is no plain file.")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SubmissionError(f"{path} is no plain file.")
        raw = file.read(MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise SubmissionError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes.")
    return raw.decode("utf-8").replace("\r\n", "\n")


def parse_submission(text: str, path: Path, is_file: Callable[[str], bool]) -> Submission:
    """The submission a ``submission.toml`` describes; nothing is read, nothing executed.

    ``path`` is where the text lies, or will; ``is_file`` says whether a file is beside it. Raises
    :class:`SubmissionError` that names the file and the line.
    """
    try:
        document = tomllib.loads(text)
    # RecursionError: brackets nested thousands deep. ValueError: also numbers of that length.
    except (ValueError, RecursionError) as error:
        raise SubmissionError(f"{path}: not valid TOML: {error}") from None

    lines = _Lines(text)

    def problem(key: str, message: str) -> SubmissionError:
        line = lines.of(key)
        return SubmissionError(f"{path}{f', line {line}' if line else ''}: {message}")

    for key in document:
        if key not in _SCHEMA:
            raise problem(key, str(UnknownNameError("setting", key, _SCHEMA)))
    values: dict[str, Any] = {}
    for key, (parse, default) in _SCHEMA.items():
        if key not in document:
            if default is _REQUIRED:
                raise problem(key, f"the setting {key!r} is missing.")
            values[key] = default
            continue
        try:
            values[key] = parse(document[key])
        except ValueError as error:
            found = repr(document[key])
            found = found if len(found) <= 80 else found[:77] + "..."
            raise problem(key, f"{key} must be {error}, found {found}.") from None
    for key, message in _disagreements(is_file, document, values):
        raise problem(key, message)
    arguments, output, labels = (values.pop(key) for key in ("command", "output", "labels"))
    command = arguments and Command(arguments=arguments, output=output, labels=labels)
    return Submission(folder=path.parent.resolve(), command=command, **values)


def _disagreements(
    is_file: Callable[[str], bool], document: dict[str, Any], values: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """What settings, each right by itself, say against each other or against the folder."""
    if values["command"] is None:
        for key in ("output", "labels"):
            if key in document:
                yield key, f"{key} goes with a command; an entry_point hands over its images."
        if not values["entry_point"]:
            yield (
                "entry_point",
                "the setting 'entry_point' is missing, and so is 'command'; one of them is needed.",
            )
        module = values["entry_point"].partition(":")[0]
        if not is_file(f"{module}.py"):
            yield "entry_point", f"there is no {module}.py beside {CONFIG_NAME}."
        return
    if values["entry_point"]:
        yield "command", "there is an entry_point too; leave one of them out."
    if values["output"] is None:
        yield "command", "a command needs output, the name of the tensor file it writes."
    if values["output"] == values["labels"]:
        yield "labels", "labels must be another file than output."
    for key in ("augmentation", "batch_size", "images_per_class"):
        if document.get(key, "none") != "none":
            yield key, f"{key} means nothing for a command, which makes its images by itself."
    program, *rest = values["command"]
    script = rest[0] if is_python(program) and rest else ""
    if script.endswith(".py") and not is_file(script):
        yield "command", f"there is no {script} beside {CONFIG_NAME}."


def is_python(program: str) -> bool:
    """Whether a command's program is to be the interpreter the harness itself runs in."""
    return program in ("python", "python3")


def is_digested(relative: PurePath) -> bool:
    """Whether a file at this path of a submission is part of its digest.

    ``README.md``, recorded results and what tools leave behind are not.
    """
    results = relative.parts[0] == "results" and relative.suffix == ".json"
    return not (results or relative.name == "README.md" or is_leftover(relative))


def is_leftover(relative: PurePath) -> bool:
    """Whether a path is, or lies in, what Python, git and file browsers leave in a folder."""
    return not _CACHES.isdisjoint(relative.parts)


def submission_files(folder: Path) -> Iterator[tuple[PurePath, Path]]:
    """The files that make a submission what it is, as (relative path, where), sorted by path.

    Raises :class:`SubmissionError` for a symbolic link, which could point outside the folder, for
    more than :data:`MAX_FOLDER_BYTES`, and for large files that are next to nothing but holes.
    """
    total = 0
    try:
        paths = sorted(folder.rglob("*"))
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "its folders are too deep"
        raise SubmissionError(f"{folder} cannot be listed: {reason}.") from None
    for path in paths:
        relative = path.relative_to(folder)
        if not is_digested(relative):
            continue
        if path.is_symlink():
            raise SubmissionError(f"{path} is a symbolic link; a submission holds plain files.")
        if path.is_file():
            found = path.stat()
            total += found.st_size
            if total > MAX_FOLDER_BYTES:
                raise SubmissionError(
                    f"{folder} holds more than {MAX_FOLDER_BYTES >> 30} GiB, up to {path} of "
                    f"{found.st_size:,} bytes.\nRemove what the submission does not need."
                )
            if found.st_size > HOLES_BYTES and found.st_blocks * 512 < found.st_size // 100:
                raise SubmissionError(
                    f"{path} says it has {found.st_size:,} bytes, on disk are "
                    f"{found.st_blocks * 512:,}: a file of holes.\n"
                    "Remove it, or write it in full."
                )
            yield relative, path


def folder_digest(folder: Path) -> str:
    """The :func:`files_digest` of a submission's files; raises what ``submission_files`` does."""
    return files_digest(_with_contents(submission_files(folder)))


def _with_contents(files: Iterable[tuple[PurePath, Path]]) -> Iterator[tuple[PurePath, bytes]]:
    for relative, path in files:
        with path.open("rb") as file:
            yield relative, hashlib.file_digest(file, "sha256").digest()


def files_digest(files: Iterable[tuple[PurePath, bytes]]) -> str:
    """Hex SHA-256 over the relative paths and the contents' SHA-256, sorted by path.

    What :func:`is_digested` leaves out does not count.
    """
    digest = hashlib.sha256(b"ddchallenge-submission-1\0")
    for relative, content in sorted(files):
        if is_digested(relative):
            digest.update(os.fsencode(relative.as_posix()) + b"\0" + content)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------- finding


def _baseline_roots() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parent
    return (
        Path.cwd() / "baselines",
        package / "baselines",  # where the wheel carries them
        package.parent / "baselines",  # where a checkout has them
    )


def _installed() -> Iterator[tuple[str, Path]]:
    """Submissions other packages registered: ``name = "package.with.submission_toml"``.

    The folder is worked out from the import system's answer for the top-level package, so that
    nothing of the package is executed here.
    """
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        top, *rest = entry.value.partition(":")[0].split(".")
        spec = find_spec(top)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folder = Path(location, *rest)
            if (folder / CONFIG_NAME).is_file():
                yield entry.name, folder
                break


def _candidates() -> dict[str, list[Path]]:
    """Every name and the folders that have it: more than one is for the caller to refuse."""
    baselines: dict[str, Path] = {}
    for root in _baseline_roots():
        for folder in _submissions_in(root):
            baselines.setdefault(folder.name, folder)  # a checkout's own before the installed ones
    found: dict[str, list[Path]] = {}
    for folder in (*_submissions_in(Path.cwd() / "submissions"), *baselines.values()):
        found.setdefault(folder.name, []).append(folder)
    for name, folder in _installed():
        found.setdefault(name, []).append(folder)
    return found


def _submissions_in(root: Path) -> list[Path]:
    return [config.parent for config in sorted(root.glob(f"*/{CONFIG_NAME}"))]


def list_submissions() -> tuple[ListedSubmission, ...]:
    """Every submission that can be named, sorted by name; broken ones with what is wrong."""
    rows = []
    for name, folders in sorted(_candidates().items()):
        for folder in folders:
            try:
                submission, problem = _named(name, folder), None
            except SubmissionError as error:
                submission, problem = None, str(error)
            rows.append(
                ListedSubmission(name=name, folder=folder, submission=submission, problem=problem)
            )
    return tuple(rows)


def _named(name: str, folder: Path) -> Submission:
    submission = read_submission(folder)
    if submission.name != name:
        line = _Lines((folder / CONFIG_NAME).read_text(encoding="utf-8")).of("name")
        raise SubmissionError(
            f"{folder / CONFIG_NAME}, line {line}: name is {submission.name!r}, but the folder is "
            f"{name!r}; the two must be the same."
        )
    folder_digest(folder)  # refuses what has none
    return submission


def find_submission(reference: str) -> Submission:
    """A submission by path or by name.

    Raises :class:`UnknownNameError`, or :class:`SubmissionError` when it is broken or when two
    folders have the same name.
    """
    path = Path(reference)
    if path.is_dir() and (path / CONFIG_NAME).exists():
        return read_submission(path)
    if len(path.parts) > 1:
        raise SubmissionError(f"{reference} is not a folder with a {CONFIG_NAME}.")
    candidates = _candidates()
    folders = candidates.get(reference)
    if folders is None:
        raise UnknownNameError("submission", reference, candidates)
    if len(folders) > 1:
        places = "\n".join(f"  {folder}" for folder in folders)
        raise SubmissionError(
            f"{len(folders)} submissions are called {reference!r}; give the path:\n{places}"
        )
    return _named(reference, folders[0])


def require_dataset(submission: Submission, spec: DatasetSpec) -> None:
    """Raise :class:`RequestError` unless the submission is made for the dataset."""
    kind = spec.name if spec.folder is None else CLASS_FOLDERS
    if kind not in submission.datasets:
        wanted = spec.name if spec.folder is None else "class folders"
        raise RequestError(
            f"{submission.name} is made for {', '.join(submission.datasets)}, not for {wanted}.\n"
            "Choose another --submission or --dataset (see `ddchallenge submissions`)."
        )
