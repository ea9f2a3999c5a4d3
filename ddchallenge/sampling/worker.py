"""The child's side: load the submission's generator and answer requests until the pipe closes.

Runs as ``python -m ddchallenge.sampling.worker`` with requests on stdin, frames on stdout and
everything the submission prints on stderr. It checks what the generator returns so that an author
reads a helpful message; the supervisor checks again, since a submission can replace this code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ddchallenge.generator import Command, Generator
from ddchallenge.jsonio import to_json
from ddchallenge.records import DatasetSpec, GenerationTask
from ddchallenge.sampling import command_worker
from ddchallenge.sampling.schedule import round_robin
from ddchallenge.sampling.wire import (
    MAX_TEXT_BYTES,
    Frame,
    Header,
    Kind,
    read_frame,
    unpack_request,
    write_frame,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["checked_images", "load_generator", "task_payload"]


class ContractError(Exception):
    """The generator broke its contract; the text is for its author."""


def task_payload(
    task: GenerationTask, folder: Path, entry_point: str, command: Command | None = None
) -> bytes:
    """The TASK frame's payload: what :func:`main` needs to set up a generator or run a command.

    All paths are as the worker sees them.
    """
    training_data = task.training_data
    return json.dumps(
        {
            "dataset": _described(task.dataset),
            "device": task.device,
            "run_seed": task.run_seed,
            "training_data": str(training_data) if training_data else None,
            "working_dir": str(task.working_dir),
            "options": dict(task.options),
            "folder": str(folder),
            "entry_point": entry_point,
            "command": asdict(command) if command else None,
        },
        ensure_ascii=False,
    ).encode("utf-8", "surrogateescape")


def _described(spec: DatasetSpec) -> str | dict[str, Any]:
    """A dataset by its name, or class folders by all but their place: that is not told."""
    if spec.folder is None:
        return spec.name
    return to_json(replace(spec, folder=None))


def _dataset(described: str | dict[str, Any]) -> DatasetSpec:
    from ddchallenge.datasets import get_dataset

    if isinstance(described, str):
        return get_dataset(described)
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in described.items()
    }
    return DatasetSpec(**values)


def _task(document: dict[str, Any]) -> GenerationTask:
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in document["options"].items()}
    training_data = document["training_data"]
    return GenerationTask(
        dataset=_dataset(document["dataset"]),
        device=document["device"],
        run_seed=document["run_seed"],
        training_data=Path(training_data) if training_data else None,
        working_dir=Path(document["working_dir"]),
        options=MappingProxyType(options),
    )


def load_generator(folder: Path, entry_point: str) -> Generator:
    """Import ``module:Class`` from a submission's folder and make one.

    Raises :class:`ContractError` where that is not a generator.
    """
    module_name, _, attribute = entry_point.partition(":")
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(module_name, folder / f"{module_name}.py")
    if spec is None or spec.loader is None:
        raise ContractError(f"{folder / module_name}.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    factory = getattr(module, attribute, None)
    if factory is None:
        raise ContractError(f"{module_name}.py defines no {attribute}")
    generator = factory()
    if not isinstance(generator, Generator):
        raise ContractError(f"{attribute} needs the methods setup(task) and generate(labels, seed)")
    return generator


def checked_images(images: Any, count: int, image_size: int) -> NDArray[np.uint8]:
    """What a generator returned, as contiguous uint8 count×3×size×size.

    NumPy arrays and torch tensors on any device are accepted. Raises :class:`ContractError`.
    """
    import numpy as np

    if hasattr(images, "detach") and hasattr(images, "cpu"):  # a tensor, without importing torch
        images = images.detach().cpu().numpy()
    if not isinstance(images, np.ndarray):
        hint = "; join the images with numpy.stack" if isinstance(images, list | tuple) else ""
        raise ContractError(
            "generate must return one NumPy array or torch tensor, "
            f"found {type(images).__name__}{hint}"
        )
    if images.dtype != np.uint8:
        raise ContractError(
            f"generate must return uint8 pixels 0..255, found {images.dtype}; "
            "for floats in 0..1 return (images * 255).round().clip(0, 255) as uint8"
        )
    expected = (count, 3, image_size, image_size)
    if images.shape != expected:
        channels_last = images.shape == (count, image_size, image_size, 3)
        hint = "; channels come first: images.transpose(0, 3, 1, 2)" if channels_last else ""
        raise ContractError(f"generate must return shape {expected}, found {images.shape}{hint}")
    return np.ascontiguousarray(images)


def _answer(generator: Generator, task: GenerationTask, frame: Frame, frames: int) -> None:
    first, seed = unpack_request(frame)
    count = frame.header.count
    labels = round_robin(first, count, task.dataset.num_classes)
    size = task.dataset.image_size
    images = checked_images(generator.generate(labels, seed), count, size)
    header = Header(
        kind=Kind.IMAGES,
        channels=3,
        index=frame.header.index,
        count=count,
        height=size,
        width=size,
        payload_bytes=images.nbytes,
    )
    write_frame(frames, header, images.data.cast("B"))


def _serve(requests: int, frames: int) -> None:
    write_frame(frames, Header(kind=Kind.HELLO))
    opening = read_frame(requests)
    if opening is None:
        return
    document = json.loads(opening.payload.decode("utf-8", "surrogateescape"))
    task = _task(document)
    folder = Path(document["folder"])
    if document["command"] is not None:
        _run_command(task, folder, Command(**document["command"]), frames)
        return
    generator = load_generator(folder, document["entry_point"])
    generator.setup(task)
    write_frame(frames, Header(kind=Kind.READY))
    while (frame := read_frame(requests)) is not None:
        _answer(generator, task, frame, frames)


def _run_command(task: GenerationTask, folder: Path, command: Command, frames: int) -> None:
    write_frame(frames, Header(kind=Kind.READY))
    try:
        failure = command_worker.run(task, folder, command)
    except OSError as error:
        program = command.arguments[0]
        raise ContractError(f"the command {program!r} cannot be run: {error.strerror}") from None
    if failure:
        _give_up(frames, Kind.FAILED, failure)
    else:
        write_frame(frames, Header(kind=Kind.DONE))


def _place(error: BaseException) -> str:
    """Where in the submission's own files an exception came from, `` (generate.py, line 18)``."""
    folder = sys.path[0]  # load_generator has put the submission there
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(folder + os.sep):
            return f" ({os.path.relpath(frame.filename, folder)}, line {frame.lineno})"
    return ""


def _give_up(frames: int, kind: Kind, text: str) -> int:
    payload = text.encode("utf-8", "replace")[:MAX_TEXT_BYTES]
    write_frame(frames, Header(kind=kind, payload_bytes=len(payload)), payload)
    return 1


def main() -> int:
    """Serve until the request pipe closes; 1 after a failure that was reported as a frame."""
    if os.getpid() == 1:
        # In a container the kernel passes on no signal to the first process that it has not asked
        # for, and nobody has prepared the empty folder it may write to.
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
        Path(os.environ["TMPDIR"]).mkdir(exist_ok=True)
    # The pipes move to descriptors no print can reach; stdout becomes the log, stdin is empty.
    requests, frames = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    try:
        _serve(requests, frames)
    except BrokenPipeError:
        return 1  # the supervisor is gone or has stopped listening
    except ContractError as error:
        return _give_up(frames, Kind.VIOLATION, str(error))
    except Exception as error:
        traceback.print_exc()
        return _give_up(frames, Kind.FAILED, f"{type(error).__name__}: {error}{_place(error)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
