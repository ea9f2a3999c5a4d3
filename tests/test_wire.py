"""Frames, schedule and spool: the parts of sampling that need no child process."""

from __future__ import annotations

import os
import struct
from collections import Counter

import numpy as np
import pytest

from ddchallenge.augment import get_plan
from ddchallenge.errors import OutputError, StorageError
from ddchallenge.sampling.copies import CopyMaker
from ddchallenge.sampling.output_log import HEAD_BYTES, OutputLog
from ddchallenge.sampling.schedule import batch_seed, fitted_batch, round_robin
from ddchallenge.sampling.spool import Spool
from ddchallenge.sampling.wire import (
    HEADER,
    Frame,
    FrameReader,
    Header,
    Kind,
    WireError,
    pack_request,
    read_frame,
    unpack_request,
    write_frame,
)


@pytest.fixture
def pipe():
    """A pipe; the reading end does not block."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError:
            pass  # the test closed it


def test_a_header_is_these_bytes():
    """The layout on the pipe, byte for byte: it is what other implementations would speak."""
    header = Header(
        kind=Kind.IMAGES, channels=3, index=7, count=2, height=8, width=8, payload_bytes=384
    )
    raw = bytes.fromhex("444443310500030007000000020000000800000008000000") + struct.pack("<Q", 384)
    assert header.pack() == raw
    assert HEADER.size == len(raw) == 32
    assert Header.unpack(raw) == header


def test_frames_come_out_whole_however_they_arrive(pipe):
    """Bytes in any portions give the same frames; nothing is given before it is whole."""
    read, write = pipe
    payload = bytes(range(256)) * 3
    header = Header(kind=Kind.IMAGES, count=1, payload_bytes=len(payload))
    stream = Header(kind=Kind.HELLO).pack() + header.pack() + payload
    reader = FrameReader(read, lambda header: None)
    frames: list[Frame] = []
    for start in range(0, len(stream), 37):
        os.write(write, stream[start : start + 37])
        while (frame := reader.poll()) is not None:
            frames.append(frame)
        whole = (start + 37 >= 32) + (start + 37 >= len(stream))
        assert len(frames) == whole
    assert frames[0].header.kind is Kind.HELLO
    assert bytes(frames[1].payload) == payload
    os.close(write)
    assert reader.poll() is None
    assert reader.closed


def test_a_frame_cut_off_is_an_error(pipe):
    """The end of the pipe inside a frame is not taken for a frame."""
    read, write = pipe
    os.write(write, Header(kind=Kind.FAILED, payload_bytes=10).pack() + b"12345")
    os.close(write)
    with pytest.raises(WireError, match="cut off"):
        FrameReader(read, lambda header: None).poll()


def test_a_refused_header_takes_no_memory(pipe):
    """The reader asks before it allocates: 2^40 bytes are announced and never taken."""
    read, write = pipe
    os.write(write, Header(kind=Kind.IMAGES, payload_bytes=2**40).pack())

    def refuse(header: Header) -> None:
        raise WireError(f"{header.payload_bytes} bytes")

    with pytest.raises(WireError, match="1099511627776 bytes"):
        FrameReader(read, refuse).poll()


def test_requests_round_trip(pipe):
    """What the supervisor asks for is what the worker reads."""
    read, write = pipe
    os.set_blocking(read, True)
    write_frame(write, *pack_request(5, 1000, 64, 2**62))
    frame = read_frame(read)
    assert frame is not None
    assert (frame.header.kind, frame.header.index, frame.header.count) == (Kind.REQUEST, 5, 64)
    assert unpack_request(frame) == (1000, 2**62)
    os.close(write)
    assert read_frame(read) is None


def test_batch_seeds_are_fixed_and_differ():
    """Golden values: a change would make every recorded bundle impossible to replay."""
    golden = [2968811710, 1328280175, 3982715936]
    assert [batch_seed(0, index) for index in range(3)] == golden
    for run in (0, 1, 2**63 - 1):
        seeds = {batch_seed(run, index) for index in range(20_000)}
        assert len(seeds) == 20_000
        assert all(0 <= seed < 2**32 for seed in seeds)
    assert batch_seed(0, 0) != batch_seed(1, 0)


def test_labels_are_balanced_wherever_they_are_cut():
    """Batches of any sizes, cut anywhere: no class has over one more than another."""
    rng = np.random.default_rng(0)
    labels: list[int] = []
    while len(labels) < 500:
        labels += round_robin(len(labels), int(rng.integers(1, 40)), 7).tolist()
        counts = Counter(dict.fromkeys(range(7), 0)) + Counter(labels)
        assert max(counts.values()) - min(counts[label] for label in range(7)) <= 1


def test_the_last_batches_fit_the_time_left():
    """Full batches while there is time, then what fits, then nothing."""
    assert fitted_batch(64, seconds_left=100, queued=0, images_per_second=None) == 64
    assert fitted_batch(64, seconds_left=100, queued=64, images_per_second=10) == 64
    assert fitted_batch(64, seconds_left=10, queued=64, images_per_second=10) == 26
    assert fitted_batch(64, seconds_left=5, queued=64, images_per_second=10) == 0
    assert fitted_batch(64, seconds_left=0.01, queued=0, images_per_second=10) == 1
    assert fitted_batch(64, seconds_left=0, queued=0, images_per_second=10) == 0


def test_the_spool_gives_back_what_it_took_class_major(tmp_path):
    """Images and copies of several batches, ordered by label, then image, then copy."""
    spool = Spool(tmp_path / "spool.bin", 4)
    number = np.arange(7, dtype=np.uint8)
    images = np.broadcast_to(number[:, None, None, None], (7, 3, 4, 4)).copy()
    spool.append(images[:3].tobytes(), first=0, count=3, received_seconds=0.1)
    copies = np.stack([images[:2] + 10, images[:2] + 20], axis=1)
    spool.append(copies.tobytes(), first=0, count=2, copies=2, received_seconds=0.2)
    spool.append(images[3:].tobytes(), first=3, count=4, received_seconds=0.3)
    assert (spool.read(4, 2, 2)[:, 0, 0, 0] == [4, 5]).all()
    data = spool.assemble(3)
    assert data.images[:, 0, 0, 0].tolist() == [0, 10, 20, 3, 6, 1, 11, 21, 4, 2, 5]
    assert data.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert (data.images == data.images[:, :1, :1, :1]).all()
    cut = spool.assemble(3, copies_end=1)
    assert cut.images[:, 0, 0, 0].tolist() == [0, 10, 20, 3, 6, 1, 4, 2, 5]
    assert spool.assemble(3, copies_end=0).images[:, 0, 0, 0].tolist() == [0, 3, 6, 1, 4, 2, 5]
    spool.close()
    with pytest.raises(OutputError, match="cannot be written"):
        Spool(tmp_path / "spool.bin", 4)


def test_copies_are_given_up_down_to_whole_rounds(tmp_path):
    """Of 42 images with copies in a row and 8 more behind a gap, ten classes keep four rounds."""
    spool = Spool(tmp_path / "spool.bin", 4)
    copies = CopyMaker(get_plan("pda5"), 0, spool)
    copies._done = {0: 32, 32: 10, 50: 8}
    assert copies.ranges() == ((0, 42), (50, 58))
    assert copies.keep_whole_rounds(10) == 10
    assert copies.ranges() == ((0, 40),)
    assert copies.images == 160
    assert copies.keep_whole_rounds(41) == 40
    assert (copies.ranges(), copies.images) == ((), 0)
    spool.close()


def test_a_failing_write_leaves_whole_entries(tmp_path, monkeypatch):
    """When the disk fills in the middle of an entry, the file ends with the one before."""
    spool = Spool(tmp_path / "spool.bin", 4)
    spool.append(bytes(48 * 2), first=0, count=2, received_seconds=0.1)
    size = (tmp_path / "spool.bin").stat().st_size
    real = os.write

    def short(descriptor: int, data: memoryview) -> int:
        if len(data) > 40:
            return real(descriptor, data[:40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(StorageError, match="disk is full"):
        spool.append(bytes(48 * 2), first=2, count=2, received_seconds=0.2)
    monkeypatch.undo()
    assert (tmp_path / "spool.bin").stat().st_size == size
    assert len(spool.assemble(3)) == 2
    spool.append(bytes(48), first=2, count=1, received_seconds=0.3)
    assert len(spool.assemble(3)) == 3
    spool.close()


def test_the_log_keeps_beginning_and_end(tmp_path, pipe):
    """Two megabytes become the first one and the last quarter, and the gap is said."""
    read, write = pipe
    log = OutputLog(tmp_path / "worker.log")
    total = 2 * HEAD_BYTES
    for start in range(0, total, 1 << 15):
        os.write(write, (b"%07d\n" % start) * (1 << 12))
        while log.drain(read):
            pass
    os.write(write, b"the end\n\n")
    log.drain(read)
    assert log.last_line() == "the end"
    log.close()
    text = (tmp_path / "worker.log").read_bytes()
    assert text.startswith(b"0000000\n")
    assert text.endswith(b"the end\n\n")
    assert b"bytes of output left out" in text
    assert len(text) < 1.5 * HEAD_BYTES
