"""Submissions that want more time than there is, or do not want to end."""

from __future__ import annotations

import struct
import time
from itertools import pairwise

import pytest
from racing import Sightings, children, race

from ddchallenge.sampling.wire import Header, Kind

# The promise: two seconds after the deadline nothing of the run is left. A busy machine may take
# longer to run Python around it.
GENEROUS = 1.0


@pytest.mark.parametrize(
    ("name", "called"), [("sleeps", "cheat-sleeps"), ("ignores_sigterm", "cheat-ignores")]
)
def test_sleeping_past_the_deadline_gains_nothing(cheat, box, tmp_path, name, called):
    """It was there, it is gone, its two batches are kept and the third is not waited for."""
    seen, before = Sightings(called), children()
    log = race(cheat(name), tmp_path / "out", 2.0, on_status=seen, launcher=box()).log
    assert log.elapsed_seconds < 2.0 + 2.0 + GENEROUS
    assert (log.stop, log.images_sampled, log.late_images) == ("deadline", 32, 0)
    assert seen.none_left()
    assert children() <= before


def test_a_double_fork_into_a_new_session_is_found(cheat, box, tmp_path):
    """A grandchild of nobody, in a session of its own, deaf to signals: gone all the same."""
    seen, before = Sightings("cheat-forks"), children()
    log = race(cheat("double_fork"), tmp_path / "out", 2.0, on_status=seen, launcher=box()).log
    assert log.stop == "deadline"
    assert log.elapsed_seconds < 2.0 + 2.0
    assert seen.none_left()
    assert children() <= before


def test_a_grandchild_cannot_write_frames_after_the_deadline(cheat, box, tmp_path):
    """It answers requests in place of the worker; what counts came before the deadline."""
    seen, before = Sightings("cheat-grandchil"), children()
    entry = cheat("grandchild_writes")
    sampled = race(entry, tmp_path / "out", 2.5, on_status=seen, launcher=box())
    log = sampled.log
    assert log.stop in ("deadline", "crashed")
    assert len(sampled.data) == log.images_sampled >= 32
    assert all(line.received_seconds < 2.5 for line in log.batches)
    assert log.elapsed_seconds < 2.5 + 2.0
    assert not children() - before
    if seen.seen or box.__name__ == "_process":  # a container goes with its first process
        assert seen.none_left()


def test_a_pipe_held_open_does_not_hold_up_the_run(cheat, box, tmp_path):
    """The worker died, its child keeps the frame pipe: the run is over when the worker is."""
    seen, before = Sightings("cheat-holds"), children()
    started = time.monotonic()
    log = race(cheat("holds_pipe"), tmp_path / "out", 60, on_status=seen, launcher=box()).log
    assert time.monotonic() - started < 30
    assert log.stop == "crashed"
    assert log.images_sampled == 32
    assert seen.none_left()
    assert children() <= before


def test_a_closed_pipe_gains_no_time(cheat, box, tmp_path):
    """The pipe closed and SIGTERM ignored: ended at once, what came before is kept."""
    seen, before = Sightings("cheat-closes"), children()
    started = time.monotonic()
    launcher = box()
    budget = 20 if launcher.name == "process" else 5
    log = race(
        cheat("closes_pipe"), tmp_path / "out", budget, on_status=seen, launcher=launcher
    ).log
    assert time.monotonic() - started < 15
    assert log.images_sampled == 32
    if launcher.name == "process":
        assert log.stop == "crashed"
        assert "closed its frame pipe and went on running" in log.stop_detail
    else:  # the engine has the other end, and closes it when the container ends
        assert log.stop == "deadline"
    assert seen.none_left()
    assert children() <= before


def test_replacing_the_clock_moves_no_deadline(cheat, box, tmp_path):
    """time.monotonic says 0 in the worker; the log has the supervisor's time, and so the end."""
    log = race(cheat("stops_the_clock"), tmp_path / "out", 2.5, launcher=box()).log
    assert log.stop == "deadline"
    assert log.elapsed_seconds < 2.5 + 2.0
    times = [line.received_seconds for line in log.batches]
    assert all(line.batches == 1 for line in log.batches)
    assert times[0] > 0.25
    assert all(0.2 < after - before < 1.5 for before, after in pairwise(times))


def frame(**changes) -> bytes:
    values = {"kind": Kind.IMAGES, "channels": 3, "index": 1, "count": 16, "height": 8,
              "width": 8, "payload_bytes": 3072}  # fmt: skip
    return Header(**(values | changes)).pack()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (frame(payload_bytes=2**40), "of 1099511627776 bytes"),
        (frame(payload_bytes=2**64 - 1), "of 18446744073709551615 bytes"),
        (frame(height=2**32 - 8, payload_bytes=0), "16×3×4294967288×8"),  # -8, if signed
        (frame(count=2**32 - 1), "4294967295×3×8×8"),
        (frame(count=15, payload_bytes=2880), "15×3×8×8"),
        (frame(index=9), "with batch 9"),  # as if it were later than it is
        (frame(kind=Kind.READY, payload_bytes=0), "found a READY frame"),
        (struct.pack("<4sHHIIIIQ", b"DDC1", 77, 3, 1, 16, 8, 8, 3072), "unknown kind 77"),
        (b"x" * 64, "does not begin like a frame"),
    ],
    ids=["2^40", "2^64", "negative", "count", "fewer", "time", "kind", "unknown", "noise"],
)
def test_forged_frames_are_refused_before_memory_is_taken(cheat, box, tmp_path, raw, message):
    """A header that announces anything but what was asked for ends the run at once.

    No frame has a time in it: when one came is the supervisor's to say.
    """
    entry = cheat("forges", options=f'frame = "{raw.hex()}"')
    before = children()
    started = time.monotonic()
    log = race(entry, tmp_path / "out", budget=30, launcher=box()).log
    assert time.monotonic() - started < 15
    assert (log.stop, log.images_sampled) == ("refused", 16)
    assert message in log.stop_detail
    assert children() <= before
