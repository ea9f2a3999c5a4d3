"""A supervisor that is killed loses nothing that had come."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from racing import HONEST, SPEC, order_for

from ddchallenge.augment import augment, get_plan, image_seed
from ddchallenge.bundle import read_bundle
from ddchallenge.errors import BundleError, RequestError, StorageError
from ddchallenge.marks import cost_the_rank, marks_of
from ddchallenge.pipeline import recover_bundle, sample_bundle
from ddchallenge.rules import get_protocol
from ddchallenge.sampling.recover import recover
from ddchallenge.sampling.schedule import batch_seed
from ddchallenge.sampling.spool import ENTRY, MAGIC

SLOW = HONEST.replace("images =", "import time; time.sleep(0.03); images =")
IMAGE = 3 * 8 * 8


def images_in(spool: Path) -> tuple[int, int]:
    """How many images have whole entries in a spool, and up to which one all have copies there."""
    raw = spool.read_bytes() if spool.exists() else b""
    place = sampled = 0
    copied: set[int] = set()
    while place + ENTRY.size <= len(raw):
        _, copies, _, first, count, _, _ = ENTRY.unpack_from(raw, place)
        place += ENTRY.size + count * max(copies, 1) * IMAGE
        if place <= len(raw) and copies:
            copied.update(range(first, first + count))
        elif place <= len(raw):
            sampled += count
    return sampled, next(number for number in range(sampled + 1) if number not in copied)


def killed_run(submission, out: Path, *, sampled: int, copied: int = 0, **changes) -> None:
    """Sample in a process of its own and kill -9 it once so many images are in the spool."""
    child = os.fork()
    if child == 0:
        try:
            sample_bundle(order_for(submission, 60, **changes), None, out)
        finally:
            os._exit(0)
    spool = out / "spool.bin"
    until = time.monotonic() + 50
    while time.monotonic() < until:
        found = images_in(spool)
        if found[0] >= sampled and found[1] >= copied:
            break
        time.sleep(0.01)
    family = psutil.Process(child).children(recursive=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_a_killed_supervisor_loses_nothing(make_submission, tmp_path):
    """Every whole frame is in the bundle, which says that it was recovered, and never ranks."""
    out = tmp_path / "out"
    submission = make_submission(SLOW)
    killed_run(submission, out, sampled=80)
    with pytest.raises(BundleError, match="sample --recover"):  # said by score and verify
        read_bundle(out)
    whole = (out / "spool.bin").stat().st_size // (ENTRY.size + 16 * IMAGE)
    # What being killed in the middle of a write leaves.
    with (out / "spool.bin").open("ab") as file:
        file.write(ENTRY.pack(MAGIC, 0, 8, whole * 16, 16, batch_seed(5, whole), 59.0) + bytes(99))
    bundle = recover_bundle(out, SPEC)
    manifest = read_bundle(out / "bundle").manifest
    log = manifest.sampling
    assert manifest.recovered
    assert manifest.submission == submission.identity
    assert manifest.launch.launcher == "process"
    assert len(bundle.data) == log.images_sampled == whole * 16 >= 80
    assert (bundle.data.images[:, 0, 0, 0] == bundle.data.labels).all()
    assert log.stop == "interrupted"
    assert "supervisor was killed" in log.stop_detail
    assert f"unfinished entry of {ENTRY.size + 99} bytes" in log.stop_detail
    protocol = get_protocol("eccv2024")
    marks = marks_of(manifest, SPEC, protocol, protocol.epochs, protocol.seeds)
    assert any("recovered" in mark for mark in marks)
    assert cost_the_rank(marks)
    assert sorted(path.name for path in out.iterdir()) == ["bundle", "worker.log"]


def test_copies_that_were_made_are_recovered(make_submission, tmp_path):
    """Whole rounds keep their copies, each what the plan makes of its image; the rest goes."""
    out = tmp_path / "out"
    killed_run(
        make_submission(SLOW, batch_size="7"), out, sampled=70, copied=30, augmentation="pda5"
    )
    bundle = recover_bundle(out, SPEC)
    log = bundle.manifest.sampling
    assert log.images_augmented > 0
    ((first, end),) = log.augmented_ranges
    assert first == 0
    assert end % 10 == 0
    least, most = bundle.data.images_per_class(10)
    assert most - least <= 1
    copies = augment(get_plan("pda5"), bundle.data.images[:1], [image_seed(5, 0)])[0]
    assert (bundle.data.images[1:5] == copies).all()


def test_a_run_that_goes_on_is_left_alone(make_submission, tmp_path):
    """Asked for while the run goes on: refused, and the run comes to its own bundle."""
    out = tmp_path / "out"
    refusals = []

    def ask(status):
        if status.images_sampled > 32 and not refusals:
            with pytest.raises(RequestError) as refusal:
                recover(out, SPEC)
            refusals.append(str(refusal.value))

    bundle = sample_bundle(order_for(make_submission(SLOW), 30, max_images=160), None, out, ask)
    assert "is still going on; nothing was touched" in refusals[0]
    assert len(bundle.data) == 160
    assert not bundle.manifest.recovered
    with pytest.raises(RequestError, match=r"no run\.json\. Its bundle is there already"):
        recover(out, SPEC)


def test_a_bundle_that_cannot_be_written_can_be_tried_again(make_submission, tmp_path, monkeypatch):
    """Spool and run.json stay, and recovering makes the bundle that could not be made."""
    from ddchallenge import pipeline

    def full(*args):
        raise StorageError("There was no room.")

    out = tmp_path / "out"
    order = order_for(make_submission(HONEST), 30, max_images=48)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_bundle", full)
        with pytest.raises(StorageError, match=r"All 48 images are kept in .*--recover"):
            sample_bundle(order, None, out)
    assert len(recover_bundle(out, SPEC).data) == 48


@pytest.fixture
def left(make_submission, tmp_path):
    """A folder with a spool of three batches and nothing running."""
    out = tmp_path / "left"
    from ddchallenge import pipeline

    def full(*args):
        raise StorageError("no room")

    order = order_for(make_submission(HONEST), 30, max_images=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_bundle", full)
        with pytest.raises(StorageError):
            sample_bundle(order, None, out)
    return out


def rewritten(out, number, **changes):
    """Change the header of an entry."""
    raw = bytearray((out / "spool.bin").read_bytes())
    place = number * (ENTRY.size + 16 * IMAGE)
    names = ("magic", "copies", "side", "first", "count", "seed", "received")
    values = dict(zip(names, ENTRY.unpack_from(raw, place), strict=True)) | changes
    ENTRY.pack_into(raw, place, *values.values())
    (out / "spool.bin").write_bytes(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"XXXX"},
        {"side": 9},
        {"count": 2**32 - 1},
        {"count": 0},
        {"first": 99},
        {"seed": 1},
        {"received": float("nan")},
        {"received": 30.5},
        {"received": 0.0},
        {"copies": 4},
        {"copies": 2**32 - 1},
    ],
    ids=str,
)
def test_a_spool_is_believed_as_far_as_it_is_right(left, changes):
    """A header that cannot have been written next ends what is taken, whatever it announces."""
    rewritten(left, 1, **changes)
    about, sampled = recover(left, SPEC)
    sampled.spool.close()
    assert about.budget_seconds == 30
    assert len(sampled.data) == 16


def test_a_spool_without_an_image_is_said_to_hold_none(left):
    """A killed run that had not one image has nothing to recover."""
    (left / "spool.bin").write_bytes(b"")
    with pytest.raises(RequestError, match="not one image had come"):
        recover(left, SPEC)
    (left / "spool.bin").unlink()
    with pytest.raises(RequestError, match=r"has no spool\.bin"):
        recover(left, SPEC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "schema 99, this version reads 1"),
        ({"augmentation": "pda99"}, "augmentation is no plan"),
        ({"budget_seconds": -1}, "budget_seconds is not positive"),
        ({"run_seed": -1}, "run_seed is negative"),
        ({"launch": None}, "launch is missing"),
        ({"dataset": "cifar100"}, "was for cifar100, not for digits"),
        ({"more": 1}, "more is not known here"),
    ],
)
def test_a_strangers_run_record_is_checked(left, changes, message):
    """run.json comes from a stranger as much as the spool does."""
    path = left / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RequestError, match=message):
        recover(left, SPEC)


def test_a_link_is_no_spool(left, tmp_path):
    """Nothing is read through a link."""
    (left / "spool.bin").rename(tmp_path / "elsewhere")
    (left / "spool.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="cannot be written"):
        recover(left, SPEC)


def test_ranges_of_copies_are_noted_without_their_numbers():
    """As a set of numbers would: overlaps are refused, in whatever order the ranges come."""
    import random

    from ddchallenge.sampling.recover import _Past

    past = _Past.__new__(_Past)
    past._copied = []
    generator, numbers = random.Random(3), set()
    taken = 0
    for _ in range(3000):
        first = generator.randrange(2000)
        end = first + generator.randint(1, 5)
        free = numbers.isdisjoint(range(first, end))
        assert past._take(first, end) == free
        if free:
            numbers.update(range(first, end))
            taken += 1
        edges = past._copied
        assert edges == sorted(set(edges))
        assert len(edges) % 2 == 0
    assert taken > 300
    ranges = zip(edges[::2], edges[1::2], strict=True)
    assert {number for a, b in ranges for number in range(a, b)} == numbers
    assert past._take(10**6, 10**15)
    assert not past._take(10**14, 10**14 + 1)
