"""What the harness costs: start of the command line, frames, deadline, idle time, augmentation.

::

    python -m benchmarks.sampling            # about three minutes
    python -m benchmarks.sampling --budget 10s

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

from ddchallenge.augment import AugmentationPool, get_plan
from ddchallenge.datasets import get_dataset
from ddchallenge.environment import describe_environment
from ddchallenge.generator import Submission, read_submission
from ddchallenge.records import SamplingLog
from ddchallenge.rules import get_rules
from ddchallenge.sampling.supervisor import SamplingOrder, sample

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
            self.account = open(task.options["account"], "w")
        def generate(self, labels, seed):
            started = time.perf_counter()
            time.sleep(0.002 * len(labels))
            images = np.zeros((len(labels), 3, 64, 64), np.uint8)
            print(time.perf_counter() - started, file=self.account, flush=True)
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


def run(entry: Submission, folder: Path, dataset: str, budget: float) -> SamplingLog:
    order = SamplingOrder(
        submission=entry,
        dataset=get_dataset(dataset),
        rules=get_rules("generative"),
        budget_seconds=budget,
        device="cpu",
        run_seed=0,
        max_images=None,
        augmentation="none",
        training_data=None,
    )
    sampled = sample(order, folder)
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


def frame_rate(scratch: Path) -> str:
    log = run(submission(scratch / "constant", CONSTANT, 256), scratch / "a", "tinyimagenet", 6)
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


def overshoot(scratch: Path) -> str:
    entry = submission(scratch / "hanging", HANGING, 16)
    over = [
        run(entry, scratch / f"hang{i}", "digits", 1.0).elapsed_seconds - 1.0 for i in range(20)
    ]
    return f"median {statistics.median(over):.3f} s, max {max(over):.3f} s of 20 runs of 1 s"


def busy_share(scratch: Path, budget: float) -> str:
    account = scratch / "account"
    entry = submission(scratch / "busy", BUSY, 64, f'account = "{account}"')
    log = run(entry, scratch / "b", "tinyimagenet", budget)
    busy = sum(map(float, account.read_text().split()))
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
@click.option("--budget", default=60.0, show_default=True, help="Seconds for the busy share.")
def main(budget: float) -> None:
    """Print what the harness costs on this machine."""
    environment = describe_environment("cpu")
    click.echo(f"{environment.hardware}; Python {environment.python}; {environment.platform}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        click.echo(f"ddchallenge --help   {help_seconds()}")
        click.echo(f"supervisor           {frame_rate(scratch)}")
        click.echo(f"budget overshoot     {overshoot(scratch)}")
        click.echo(f"generator busy       {busy_share(scratch, budget)}")
        click.echo(f"augmentation         {augmentation_rate()}")


if __name__ == "__main__":
    main()
