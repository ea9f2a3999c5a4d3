"""Submissions that want to see, reach or take more than is theirs."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from racing import SPEC, Sightings, children, order_for, race

from ddchallenge.audit import audit
from ddchallenge.datasets import load_split
from ddchallenge.errors import SamplingError
from ddchallenge.pipeline import sample_bundle
from ddchallenge.sampling.launchers import sandbox

ABI = sandbox.landlock_abi() or 0
# A container needs none; where a plain process cannot be boxed, its record says so.
needs_landlock = pytest.mark.skipif(ABI < 6, reason="this kernel has no Landlock of ABI 6")


def brightness(sampled) -> int:
    return int(sampled.data.images.max())


def said(out: Path) -> str:
    return (out / "worker.log").read_text()


def test_a_flood_of_output_is_cut_and_harms_nothing(cheat, box, tmp_path):
    """Prints without end cannot reach the frames, nor fill the disk, nor stop the run."""
    sampled = race(cheat("floods"), tmp_path / "out", 30, max_images=320, launcher=box())
    assert (sampled.log.stop, len(sampled.data)) == ("images", 320)
    assert (sampled.data.images == 9).all()
    assert len(said(tmp_path / "out")) < 1_500_000


@needs_landlock
def test_the_network_is_out_of_reach(cheat, box, tmp_path):
    """Neither TCP nor UDP, out or in; the same calls from here do get through."""
    heard = []
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))

    def listen():
        while True:
            try:
                connection, _ = tcp.accept()
            except OSError:
                return
            with connection:
                heard.append(connection.recv(100))

    threading.Thread(target=listen, daemon=True).start()
    with tcp, udp:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"ours")
        until = time.monotonic() + 5
        while not heard and time.monotonic() < until:
            time.sleep(0.01)
        assert heard == [b"ours"]
        launcher = box()
        # A container has a network of its own with nothing in it: there it may bind and send.
        counted = "tcp udp server ip6 raw packet curl" if launcher.name == "process" else "tcp ip6"
        options = f'address = "127.0.0.1:{port}"\ncount = "{counted}"'
        entry = cheat("network", options=options)
        sampled = race(entry, tmp_path / "out", 30, max_images=16, launcher=launcher)
        udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.recv(100)
    text = said(tmp_path / "out")
    assert "tcp: " in text
    assert "udp: " in text
    assert heard == [b"ours"]
    assert brightness(sampled) == 0, text


@needs_landlock
def test_the_test_set_cannot_be_read(cheat, box, tmp_path):
    """Not where it was decoded to, not at its source, not through a link or another process."""
    test, training = load_split(SPEC, "test"), load_split(SPEC, "train")
    source = Path(find_spec("sklearn").origin).parent / "datasets/data/digits.csv.gz"
    paths = [test.folder / "images.npy", test.folder / "labels.npy", source]
    assert all(path.read_bytes() for path in paths)
    entry = cheat(
        "reads", options=f'paths = "{":".join(map(str, paths))}"', needs_training_data="true"
    )
    sampled = race(
        entry, tmp_path / "out", 30, max_images=16, training_data=training.folder, launcher=box()
    )
    assert brightness(sampled) == 0, said(tmp_path / "out")


@needs_landlock
def test_class_folders_and_a_chosen_folder_cannot_be_read(cheat, tmp_path):
    """What --data-dir names and where class folders lie is as hidden as the usual places."""
    from dataclasses import replace

    from ddchallenge.sampling.launchers.process import ProcessLauncher

    (tmp_path / "chosen/deep").mkdir(parents=True)
    (tmp_path / "classes").mkdir()
    (tmp_path / "open").mkdir()
    for place in ("chosen/deep", "classes", "open"):
        (tmp_path / place / "secret").write_text("of the test set")
    launcher = ProcessLauncher(hidden=(tmp_path / "chosen",))
    spec = replace(SPEC, folder=tmp_path / "classes")
    hidden = f"{tmp_path}/chosen/deep/secret:{tmp_path}/classes/secret"
    for name, paths, expected in (("a", hidden, 0), ("b", f"{tmp_path}/open/secret", 200)):
        entry = cheat("reads", options=f'paths = "{paths}"')
        out = tmp_path / name
        sampled = race(entry, out, 30, max_images=16, dataset=spec, launcher=launcher)
        assert brightness(sampled) == expected, said(out)
        (tmp_path / "submissions/reads").rename(tmp_path / f"done-{name}")


@needs_landlock
def test_nothing_outside_its_folder_can_be_written(cheat, box, tmp_path):
    """Not beside it, not in the submission, not in the temporary folder; and no device made."""
    victims = []
    with tempfile.TemporaryDirectory() as outside:
        for folder in (Path(outside), tmp_path / "beside"):
            folder.mkdir(exist_ok=True)
            (folder / "precious").write_text("mine")
            victims.append(folder / "precious")
        entry = cheat("writes", options=f'victims = "{":".join(map(str, victims))}"')
        own = entry.folder / "generate.py"
        code = own.read_bytes()
        sampled = race(entry, tmp_path / "out", 30, max_images=16, launcher=box())
        assert brightness(sampled) == 0, said(tmp_path / "out")
        for victim in victims:
            assert victim.read_text() == "mine"
            assert [path.name for path in victim.parent.iterdir()] == ["precious"]
        assert own.read_bytes() == code


@needs_landlock
def test_no_process_outside_can_be_signalled(cheat, box, tmp_path):
    """Neither the supervisor nor the guardian nor any other process takes a signal from it."""
    sampled = race(cheat("signals"), tmp_path / "out", 30, max_images=16, launcher=box())
    assert brightness(sampled) == 0, said(tmp_path / "out")
    assert "reached:" in said(tmp_path / "out")


def test_a_fork_bomb_ends_the_run(cheat, box, tmp_path):
    """It was there; when too many are, or at the deadline, all go; what came before is kept."""
    seen, before = Sightings("cheat-bomb"), children()
    started = time.monotonic()
    launcher = box(processes=150)
    log = race(cheat("fork_bomb"), tmp_path / "out", 6, on_status=seen, launcher=launcher).log
    assert time.monotonic() - started < 6 + 2 + 3
    assert log.images_sampled == 32
    if launcher.name == "process":
        assert log.stop == "limit"
        assert "150 are allowed" in log.stop_detail
    assert seen.none_left()
    assert children() <= before


def test_taking_all_memory_ends_the_run(cheat, box, tmp_path):
    """Two processes that take more than they may together: ended, and what came is kept."""
    seen, before = Sightings("cheat-memory"), children()
    launcher = box(memory_bytes=500 << 20)
    log = race(cheat("takes_memory"), tmp_path / "out", 30, on_status=seen, launcher=launcher).log
    assert log.images_sampled == 32
    assert log.stop in (("limit",) if launcher.name == "process" else ("limit", "crashed"))
    if log.stop == "limit":
        assert "of memory, 500 MiB are allowed" in log.stop_detail
    assert log.elapsed_seconds < 20
    assert seen.none_left()
    assert children() <= before


def test_filling_the_disk_ends_the_run(cheat, box, tmp_path):
    """More files than it may have: ended, what came is kept, its folder is gone."""
    seen = Sightings("cheat-disk")
    launcher = box(disk_bytes=40 << 20)
    log = race(cheat("fills_disk"), tmp_path / "out", 30, on_status=seen, launcher=launcher).log
    assert log.images_sampled == 32
    assert log.stop in (("limit",) if launcher.name == "process" else ("limit", "crashed"))
    if log.stop == "limit":
        assert "of files, 40 MiB are allowed" in log.stop_detail
    assert seen.none_left()
    assert not (tmp_path / "out" / "work").exists()


def test_a_file_larger_than_allowed_cannot_be_written(make_submission, box, tmp_path):
    """The kernel refuses what goes beyond the limit of one file."""
    code = """
    class G:
        def setup(self, task):
            (task.working_dir / "big").write_bytes(bytes(30 << 20))
        def generate(self, labels, seed): ...
    """
    with pytest.raises(SamplingError, match=r"File too large|No space left"):
        race(make_submission(code), tmp_path / "out", launcher=box(disk_bytes=20 << 20))


def test_real_images_are_recorded_as_asked_for(cheat, box, tmp_path):
    """Who has training images has asked for them, and the manifest says which."""
    training = load_split(SPEC, "train")
    entry = cheat("real_images", needs_training_data="true")
    order = order_for(entry, 30, max_images=100, training_data=training.folder, launcher=box())
    bundle = sample_bundle(order, training, tmp_path / "out")
    assert bundle.manifest.training_digest == training.digest
    assert bundle.manifest.training_images_per_class == training.images_per_class
    known = {image.tobytes() for image in training.data.images}
    assert {image.tobytes() for image in np.asarray(bundle.data.images)} <= known
    assert isinstance(audit(bundle.data, SPEC, load_split(SPEC, "test").data), tuple)


def test_who_has_not_asked_has_no_training_images(cheat, box, tmp_path):
    """Without needs_training_data there are none, and the message says what to ask for."""
    with pytest.raises(SamplingError, match="must say needs_training_data = true"):
        race(cheat("real_images"), tmp_path / "out", launcher=box())
    assert os.path.lexists(tmp_path / "out" / "worker.log")
