"""What a run that is broken off goes on from: one file a seed, found by what is being scored.

A checkpoint is named after the digests of the training and test images, the protocol, the seed,
the numerics and the device: never after a path, so the same command goes on wherever the bundle
lies. The number of threads and the processor, with which the bits would differ, are in the name as
well: whoever comes back to them finds what they had left. It is a safetensors file, written whole
or not at all, that carries a digest of its own contents; nothing in it can execute. One that is
damaged, or was made by another version of this package or of PyTorch, is set aside and the seed
starts again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

import ddchallenge
from ddchallenge.atomic import atomic_file
from ddchallenge.errors import DDChallengeError
from ddchallenge.jsonio import DocumentError, from_json, to_json
from ddchallenge.records import SeedOutcome, SeedRun

__all__ = ["Checkpoints"]

FORMAT: Final = 1
# Weights and momenta of the largest network in the table are a tenth of this.
MAX_BYTES: Final = 1 << 30
KEPT_SECONDS: Final = 30 * 24 * 3600.0
_HEADER: Final = "ddchallenge"


class Checkpoints:
    """The checkpoints of one scoring, in ``folder``.

    ``key`` is what the runs are of; every value in it, and the seed, must be equal for a
    checkpoint to be found. ``say`` is told in a line what was set aside and why, and, once, that
    nothing can be written: then ``unwritable`` is true.
    """

    def __init__(
        self, folder: Path, key: Mapping[str, Any], say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._folder = folder
        self._key = {**key, **_computed_by()}
        self._say = say
        self.unwritable = False
        self._pruned = False

    def path(self, seed: int) -> Path:
        """The file of a seed; it need not exist."""
        text = json.dumps(self._key | {"seed": seed}, sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def load(self, seed: int) -> SeedOutcome | dict[str, Tensor] | None:
        """The outcome of a finished seed, the state of a broken-off one, or None."""
        path = self.path(seed)
        try:
            if not path.is_file():
                return None
            if path.stat().st_size > MAX_BYTES:
                raise _UnusableError("it is too large for one")
            header, tensors = _parse(path.read_bytes())
            if header.get("key") != self._key | {"seed": seed}:
                raise _UnusableError("it is of another training")
        except (OSError, _UnusableError) as error:
            self.set_aside(seed, str(error))
            return None
        if header.get("made_by") != _made_by():
            then = header.get("made_by")
            self.set_aside(seed, f"made by {_listed(then)}, this is {_listed(_made_by())}")
            return None
        if "run" not in header:
            return tensors
        try:
            return _outcome(seed, header["run"], tensors)
        except (DocumentError, _UnusableError) as error:
            self.set_aside(seed, str(error))
            return None

    def save_state(self, seed: int, state: Mapping[str, Tensor]) -> None:
        """Keep what a run goes on from."""
        self._save(seed, state, {})

    def save_outcome(self, outcome: SeedOutcome) -> None:
        """Keep what a finished seed came to, in the place of its state."""
        self._save(
            outcome.run.seed,
            {"confusion": torch.from_numpy(outcome.confusion)},
            {"run": to_json(outcome.run)},
        )

    def set_aside(self, seed: int, reason: str) -> None:
        """Move a checkpoint out of the way and say so; the seed starts again."""
        path = self.path(seed)
        aside = path.with_suffix(".set-aside")
        try:
            path.replace(aside)
        except OSError:
            aside = path
        self._say(
            f"The checkpoint of seed {seed} cannot be used ({reason}): the seed starts again.\n"
            f"It was set aside as {aside}."
        )

    def forget(self, seed: int) -> None:
        """The seed's result is safe elsewhere."""
        try:
            self.path(seed).unlink(missing_ok=True)
        except OSError:
            pass  # it will be found again, and is right

    def _prune(self) -> None:
        # What was abandoned, or set aside, that long ago nobody comes back for.
        for file in self._folder.glob("*"):
            try:
                if time.time() - file.stat().st_mtime > KEPT_SECONDS:
                    file.unlink()
            except OSError:
                pass  # somebody else was quicker, or it is not ours to delete

    def _save(self, seed: int, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
        if not self._pruned:
            self._prune()
            self._pruned = True
        contents = {name: tensor.contiguous() for name, tensor in tensors.items()}
        header = header | {
            "format": FORMAT,
            "made_by": _made_by(),
            "key": self._key | {"seed": seed},
        }
        header["digest"] = _digest(header, contents)
        try:
            with atomic_file(self.path(seed)) as temporary:
                temporary.write_bytes(save_tensors(contents, {_HEADER: json.dumps(header)}))
        except DDChallengeError as error:
            if not self.unwritable:
                self._say(f"No checkpoints are kept, a broken-off run starts again: {error}")
            self.unwritable = True


class _UnusableError(Exception):
    """A file that is no checkpoint of this format."""


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
        found, stated = header["format"], header.pop("digest")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _UnusableError(f"it is damaged: {type(error).__name__}") from error
    if found != FORMAT:
        raise _UnusableError(f"its format is {found!r}, this version writes {FORMAT}")
    if stated != _digest(header, tensors):
        raise _UnusableError("it is damaged: its contents do not match its digest")
    return header, tensors


def _outcome(seed: int, document: object, tensors: Mapping[str, Tensor]) -> SeedOutcome:
    run = from_json(SeedRun, document, "run")
    confusion = tensors.get("confusion")
    if (
        confusion is None
        or confusion.dtype != torch.int64
        or confusion.ndim != 2
        or confusion.shape[0] != confusion.shape[1]
        or (run.seed, run.test_images, run.correct)
        != (seed, int(confusion.sum()), int(confusion.trace()))
    ):
        raise _UnusableError("its counts are not those of its run")
    return SeedOutcome(run=run, confusion=confusion.numpy())


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def _made_by() -> dict[str, str]:
    return {"ddchallenge": ddchallenge.__version__, "code": _code(), "torch": torch.__version__}


def _code() -> str:
    # Between two releases too, what trains must be what trained.
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.iterdir()):
        if file.suffix in (".py", ".cpp"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _computed_by() -> dict[str, str | int]:
    return {
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "instructions": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "processor": json.dumps(dict(torch.cpu.get_capabilities()), sort_keys=True),
    }


def _listed(made_by: object) -> str:
    if not isinstance(made_by, dict):
        return "something else"
    return ", ".join(f"{name} {value}" for name, value in made_by.items())
