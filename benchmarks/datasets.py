"""How long a data set takes to load: decoded for the first time, and from the cache.

::

    python -m benchmarks.datasets --data-dir DIR

The first load goes to an empty cache folder, the others come from it, fingerprint of the source
files and checksum of the tensors included.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click

from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.environment import describe_environment


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the data sets are.")
@click.option("--dataset", default="tinyimagenet", show_default=True)
@click.option("--loads", default=10, show_default=True, help="Loads from the cache.")
def main(data_dir: Path | None, dataset: str, loads: int) -> None:
    """Print the seconds of the first and of later loads of the test images."""
    spec = get_dataset(dataset)
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(1 + loads):
            started = time.perf_counter()
            images = len(load_split(spec, "test", data_dir, Path(cache)).data)
            seconds.append(time.perf_counter() - started)
    click.echo(describe_environment("cpu").hardware)
    click.echo(
        f"{images:,} test images of {dataset}: first load {seconds[0]:.2f} s, then "
        f"median {statistics.median(seconds[1:]):.3f} s, max {max(seconds[1:]):.3f} s of {loads}"
    )


if __name__ == "__main__":
    main()
