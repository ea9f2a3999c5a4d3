"""What the harness costs: start of the command line, frames, deadline, idle time, augmentation.

::

    python -m benchmarks.sampling                            # about four minutes
    python -m benchmarks.sampling --launcher both --budget 10

Figures hold for the machine that printed them; its name is in the first line.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from textwrap import dedent

import click
import numpy as np
import psutil

from ddchallenge.augment import AugmentationPool, get_plan
from ddchallenge.cli.launch import LaunchOptions, launcher_of
from ddchallenge.datasets import get_dataset
from ddchallenge.environment import describe_environment
from ddchallenge.generator import Submission, read_submission
from ddchallenge.records import SamplingLog, SamplingStatus
from ddchallenge.rules import get_rules
from ddchallenge.sampling.launchers import Launcher
from ddchallenge.sampling.supervisor import SamplingOrder, sample

# Seconds for a worker, or its container, to come up.
START = 1.0
# Returns the same 64 px images again and again: what is left is the cost of moving them.
CONSTANT = """
    import numpy as np
    class G:
        def setup(self, task):
            self.images = np.random.default_rng(0).integers(0, 256, (256, 3, 64, 64), np.uint8)
        def generate(self, labels, seed):
            return self.images[: len(labels)]
"""
HANGING = """
    import signal, time
    class G:
        def setup(self, task):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.calls = 0
        def generate(self, labels, seed):
            import numpy as np
            self.calls += 1
            time.sleep(600 if self.calls > 1 else 0)
            return np.zeros((len(labels), 3, 8, 8), np.uint8)
"""
# Busy for 2 ms an image, as a generator on a device is, and keeps its own account of it.
BUSY = """
    import time
    import numpy as np
    class G:
        def setup(self, task):
            pass
        def generate(self, labels, seed):
            started = time.perf_counter()
            time.sleep(0.002 * len(labels))
            images = np.zeros((len(labels), 3, 64, 64), np.uint8)
            print(time.perf_counter() - started, flush=True)
            return images
"""


def submission(folder: Path, code: str, batch_size: int, options: str = "") -> Submission:
    folder.mkdir()
    (folder / "generate.py").write_text(dedent(code))
    (folder / "submission.toml").write_text(
        dedent(f"""\
        name = "{folder.name}"
        authors = ["benchmark"]
        entry_point = "generate:G"
        datasets = ["digits", "tinyimagenet"]
        batch_size = {batch_size}
        [options]
        {options}
        """)
    )
    return read_submission(folder)


def launcher_named(name: str) -> Launcher:
    """The box of that name with the limits the command line gives it."""
    options: LaunchOptions = {
        "launcher": name, "engine": None, "memory": None, "disk": None, "processes": None,
        "cpus": None,
    }  # fmt: skip
    return launcher_of(options, None)


def order_for(entry: Submission, dataset: str, budget: float, launcher: Launcher) -> SamplingOrder:
    return SamplingOrder(
        submission=entry,
        dataset=get_dataset(dataset),
        rules=get_rules("generative"),
        budget_seconds=budget,
        device="cpu",
        run_seed=0,
        max_images=None,
        augmentation="none",
        training_data=None,
        launcher=launcher,
    )


def run(
    entry: Submission, folder: Path, dataset: str, budget: float, launcher: Launcher
) -> SamplingLog:
    sampled = sample(order_for(entry, dataset, budget, launcher), folder)
    sampled.spool.close()
    sampled.spool.delete()
    return sampled.log


def help_seconds() -> str:
    def once() -> float:
        started = time.perf_counter()
        command = [str(Path(sys.executable).with_name("ddchallenge")), "--help"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started

    once()
    seconds = [once() for _ in range(10)]
    return f"median {statistics.median(seconds):.3f} s, max {max(seconds):.3f} s of 10"


def frame_rate(scratch: Path, launcher: Launcher) -> str:
    entry = submission(scratch / "constant", CONSTANT, 256)
    log = run(entry, scratch / "a", "tinyimagenet", 6 + START, launcher)
    seconds = log.seconds.sampling + log.seconds.idle
    rate = log.images_sampled / seconds
    # The floor: the same bytes through a bare pipe and into a file, one process each side.
    bare = bare_pipe_rate(scratch / "bare", log.images_sampled)
    return (
        f"{rate:,.0f} images/s ({rate * 12288 / 1e6:,.0f} MB/s) of constant 64 px images; "
        f"a bare pipe into a file {bare:,.0f} images/s (ratio {rate / bare:.2f})"
    )


def bare_pipe_rate(target: Path, images: int) -> float:
    megabytes = min(images, 100_000) * 12288 // 1_000_000
    started = time.perf_counter()
    with target.open("wb") as file:
        source = subprocess.Popen(
            ["head", "-c", str(megabytes * 1_000_000), "/dev/zero"], stdout=subprocess.PIPE
        )
        assert source.stdout is not None  # noqa: S101 - asked for above
        while chunk := source.stdout.read(1 << 20):
            file.write(chunk)
        source.wait()
    target.unlink()
    return megabytes * 1_000_000 / 12288 / (time.perf_counter() - started)


def overshoot(scratch: Path, launcher: Launcher, runs: int) -> list[str]:
    """Half of the runs hang, deaf to signals; half hand over images as fast as they can."""
    entries = [
        (submission(scratch / "hanging", HANGING, 16), "digits"),
        (submission(scratch / "eager", CONSTANT, 256), "tinyimagenet"),
    ]
    budget = 1.0 + START
    counting, ending, late, dropped = [], [], 0, 0
    for i in range(runs):
        entry, dataset = entries[i % 2]
        log = run(entry, scratch / f"over{i}", dataset, budget, launcher)
        # From "stopping" on no image counts.
        counting.append(log.elapsed_seconds - log.seconds.stopping - budget)
        ending.append(log.elapsed_seconds - budget)
        late += sum(
            line.count * line.batches for line in log.batches if line.received_seconds >= budget
        )
        dropped += log.late_images
    return [
        f"until no image counts any more: {_spread(counting)}",
        f"until nothing is left running: {_spread(ending)}",
        f"images counted that came late: {late} ({dropped:,} came late and were dropped)",
        f"in {runs} runs of {budget:g} s, half of them hanging, half sending without a pause",
    ]


def _spread(seconds: list[float]) -> str:
    return f"median {statistics.median(seconds):.3f} s, max {max(seconds):.3f} s"


class _Enough(Exception):  # noqa: N818 - not an error
    pass


def supervisor_memory(scratch: Path, launcher: Launcher, images: int) -> str:
    """Of this process, which is the supervisor, while it takes in that many 64 px images."""
    process = psutil.Process()
    before = process.memory_info().rss
    most = last = 0

    def watch(status: SamplingStatus) -> None:
        nonlocal most, last
        most, last = max(most, process.memory_info().rss), status.images_sampled
        if last >= images:
            raise _Enough  # the bundle would take the images themselves into memory, once

    entry = submission(scratch / "many", CONSTANT, 256)
    folder = scratch / "m"
    try:
        sample(order_for(entry, "tinyimagenet", 600, launcher), folder, watch)
    except _Enough:
        pass
    (folder / "spool.bin").unlink()
    return (
        f"at most {most / (1 << 20):,.0f} MiB up to {last:,} images at 64 px "
        f"({before / (1 << 20):,.0f} MiB before the run)"
    )


def busy_share(scratch: Path, budget: float, launcher: Launcher) -> str:
    # In the working folder, the one place it may write; printed, so that it outlives that.
    entry = submission(scratch / "busy", BUSY, 64)
    log = run(entry, scratch / "b", "tinyimagenet", budget, launcher)
    busy = sum(map(float, (scratch / "b" / "worker.log").read_text().split()))
    after_start = budget - log.seconds.start_up - log.seconds.load
    return (
        f"{busy / after_start:.1%} of the {after_start:.1f} s after start-up, by the generator's "
        f"own account; {log.images_sampled:,} images, {log.late_images} late"
    )


def augmentation_rate() -> str:
    plan = get_plan("pda5")
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 64, 64), np.uint8)
    pool = AugmentationPool(plan, 0, processes=2)
    try:
        chunks = 40
        for index in range(chunks + 8):
            pool.submit(index * len(images), images)
        done: list[float] = []
        while len(done) < chunks + 8:
            done += [chunk.done_at for chunk in pool.completed()]
            time.sleep(0.001)
    finally:
        pool.stop()
    done.sort()
    rate = (len(done) - 8) * len(images) / (done[-1] - done[7])
    return f"{rate * plan.copies:,.0f} copies/s at 64 px ({rate:,.0f} images/s), two processes"


@click.command()
@click.option("--launcher", type=click.Choice(["process", "container", "both"]), default="process")
@click.option("--budget", default=60.0, show_default=True, help="Seconds for the busy share.")
@click.option("--runs", default=20, show_default=True, help="Runs to see the deadline kept in.")
@click.option("--images", default=500_000, show_default=True, help="For the supervisor's memory.")
def main(launcher: str, budget: float, runs: int, images: int) -> None:
    """Print what the harness costs on this machine."""
    environment = describe_environment("cpu")
    click.echo(f"{environment.hardware}; Python {environment.python}; {environment.platform}")
    for name in ["process", "container"] if launcher == "both" else [launcher]:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            box = launcher_named(name)
            click.echo(f"--launcher {name}")
            click.echo(f"  supervisor's memory  {supervisor_memory(scratch, box, images)}")
            click.echo(f"  frames               {frame_rate(scratch, box)}")
            click.echo(
                "  deadline             " + "\n".ljust(24).join(overshoot(scratch, box, runs))
            )
            click.echo(f"  generator busy       {busy_share(scratch, budget, box)}")
    click.echo(f"ddchallenge --help     {help_seconds()}")
    click.echo(f"augmentation           {augmentation_rate()}")


if __name__ == "__main__":
    main()
