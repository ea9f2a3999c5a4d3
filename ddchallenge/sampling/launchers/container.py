"""A worker in a container of docker or podman, for code nobody has read.

``engine`` finds the engine, ``image`` builds what is run, ``box`` lists what is cut off,
``container_worker`` is the running container, and ``remover`` sees to it that it does not outlive
its supervisor. Frames come through the pipe of the engine's client process, which hands it on to
the container where it can.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import socket
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from ddchallenge.errors import RequestError, RunError
from ddchallenge.generator import Submission
from ddchallenge.jsonio import printable
from ddchallenge.records import LauncherName, LaunchRecord, Limits
from ddchallenge.sampling.launchers import (
    Places,
    check_cpus,
    check_memory,
    default_limits,
)
from ddchallenge.sampling.launchers.box import (
    TRAINING,
    WORK,
    box_environment,
    box_options,
    breaches,
    disk_in_memory,
    keep_work,
    mount_training,
)
from ddchallenge.sampling.launchers.container_worker import ContainerWorker, leave_orphans_to_init
from ddchallenge.sampling.launchers.engine import Engine, EngineName, find_engine, last_lines
from ddchallenge.sampling.launchers.image import (
    HARNESS_IMAGE,
    SUBMISSION,
    USER,
    Image,
    submission_image,
)

__all__ = ["ContainerLauncher"]

# Above what starting, a budget and stopping take.
SLACK_SECONDS: Final = 60.0


class ContainerLauncher:
    """Starts workers in containers; a :class:`~ddchallenge.sampling.launchers.Launcher`.

    ``engine`` is the engine to use, the first that works if None. ``DDCHALLENGE_IMAGE`` names the
    harness image if it is not ``ddchallenge``; ``DDCHALLENGE_BUILD_OPTIONS`` are further options
    of ``engine build`` where a submission brings packages of its own. Raises
    :class:`RequestError` for limits this machine does not have.
    """

    name: LauncherName = "container"

    def __init__(self, limits: Limits | None = None, engine: EngineName | None = None) -> None:
        self.limits = limits or default_limits()
        self._wanted = engine
        self._engine: Engine | None = None
        self._image: Image | None = None
        self._options: tuple[tuple[str, str], ...] = ()
        self._environment: dict[str, str] = {}
        self._training = False
        self._kept = False
        check_memory(self.limits.memory_bytes)
        check_cpus(self.limits.cpus)

    def prepare(
        self, submission: Submission, device: str, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Find the engine, build or find the image, and try the box."""
        self._engine = self._engine or find_engine(self._wanted)
        name = os.environ.get("DDCHALLENGE_IMAGE", HARNESS_IMAGE)
        more = _build_options()
        self._image = submission_image(self._engine, submission, name, more, say)
        gpu = device.startswith("cuda")
        direct = self._engine.direct
        self._options = box_options(self._engine.name, self.limits, gpu=gpu, direct=direct)
        self._environment = box_environment(self._engine.name)
        self._training = submission.needs_training_data
        self._kept = submission.command is not None
        self._try(gpu)

    def _try(self, gpu: bool) -> None:
        """Look at the box from inside, with the options a worker will get."""
        engine, image = self._prepared()
        leave_orphans_to_init()
        done = engine.ask(
            *self._run(f"ddchallenge-try-{secrets.token_hex(8)}", self._options),
            "--rm",
            "--entrypoint",
            "python",
            image.id,
            "-P",
            "-m",
            "ddchallenge.sampling.launchers.box",
        )
        if done.returncode != 0:
            said = last_lines(done.stderr, 2) or "it says nothing"
            if gpu:
                raise RequestError(
                    f"{engine.name} cannot give a GPU to a container: {said}\n"
                    "It needs a GPU here and the NVIDIA Container Toolkit"
                    f"{' with a CDI file (`nvidia-ctk cdi generate`)' * (engine.name == 'podman')}"
                    "; or take --device cpu."
                )
            raise RunError(f"{engine.name} cannot make the box a submission runs in: {said}")
        if problems := breaches(json.loads(done.stdout), self.limits, gpu=gpu):
            raise RunError(
                f"{engine.name} makes a box that is not closed: {'; '.join(problems)}.\n"
                "Without root, podman limits a container only with control groups v2 that are "
                "delegated to the user; as root, or with docker, it does not need that."
            )

    def _prepared(self) -> tuple[Engine, Image]:
        if self._engine is None or self._image is None:
            raise RuntimeError("prepare() comes first")
        return self._engine, self._image

    def _run(self, name: str, options: tuple[tuple[str, str], ...]) -> list[str]:
        labels = {
            "ddchallenge.run": name,
            "ddchallenge.supervisor": f"{os.getpid()}@{socket.gethostname()}",
        }
        return [
            "run",
            "--interactive",
            f"--name={name}",
            *(f"--label={key}={value}" for key, value in labels.items()),
            *(f"{option}={value}" for option, value in options),
            *(f"--env={key}={value}" for key, value in self._environment.items()),
        ]

    def inside(self, places: Places) -> Places:
        """The places in the container; of what is hidden there is nothing in it."""
        return Places(
            submission=SUBMISSION,
            working_dir=WORK,
            training_data=TRAINING if places.training_data else None,
        )

    def start(
        self, places: Places, spare: Callable[[], Collection[int]] = tuple
    ) -> ContainerWorker:
        """Start the container and, beside it, its remover."""
        del spare  # who is the run's is for the container to say
        engine, image = self._prepared()
        name = f"ddchallenge-run-{secrets.token_hex(8)}"
        options, kept = self._options, None
        if places.kept:
            kept = places.working_dir.resolve()
            _give_away(kept)
            options = keep_work(options, kept, self.limits)
        run = self._run(name, options)
        if places.seconds is not None and engine.ends_late:
            # Should all of us be killed, the engine's own watcher of the container ends it.
            run.append(f"--timeout={math.ceil(places.seconds + SLACK_SECONDS)}")
        if places.training_data is not None:
            run.append("=".join(mount_training(places.training_data.resolve())))
        # Unless it is kept, the folder outside stays empty: the worker writes to memory.
        return ContainerWorker(engine, name, engine.command(*run, image.id), self.limits, kept)

    def record(self) -> LaunchRecord:
        """The engine, the image, and the options it is run with."""
        engine, image = self._prepared()
        options, limits = self._options, self.limits
        if self._kept:
            options = keep_work(options, None, limits)
        else:
            limits = replace(limits, disk_bytes=disk_in_memory(limits))
        cut = [f"{option}={value}" for option, value in options]
        if self._training:
            cut.append(f"--mount=type=bind,target={TRAINING},readonly")
        cut.append(f"the submission's own layer of the image is {image.layer}")
        return LaunchRecord(
            launcher=self.name,
            engine=f"{engine.name} {engine.version}",
            image=image.id,
            limits=limits,
            environment=tuple(sorted(self._environment)),
            landlock=None,
            sandbox=tuple(cut),
        )


def _build_options() -> tuple[str, ...]:
    text = os.environ.get("DDCHALLENGE_BUILD_OPTIONS", "")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise RequestError(
            f"DDCHALLENGE_BUILD_OPTIONS cannot be read ({str(error).lower()}): "
            f"{printable(text[:80])!r}.\nWrite it as in a shell, such as `--network host`."
        ) from None


def _give_away(folder: Path) -> None:
    """Let the box's user, whom nothing belongs to, write to a folder."""
    if os.geteuid() == 0:
        os.chown(folder, *(int(part) for part in USER.split(":")))
    else:
        folder.chmod(0o777)
