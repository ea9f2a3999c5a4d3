"""The clock, the frames and the stopping, against submissions that behave and that do not."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter

import numpy as np
import psutil
import pytest
from racing import HONEST, SPEC, children, order_for, race

from ddchallenge.augment import augment, get_plan, image_seed
from ddchallenge.bundle import read_bundle
from ddchallenge.errors import OutputError, SamplingError
from ddchallenge.jsonio import printable
from ddchallenge.marks import marks_of
from ddchallenge.pipeline import sample_bundle
from ddchallenge.records import SamplingLog, SamplingStatus
from ddchallenge.rules import get_protocol
from ddchallenge.sampling.schedule import batch_seed, round_robin


def every_batch(log: SamplingLog) -> list[tuple[int, int, int]]:
    """Seed, first image and number of images of each batch, the lines of the log unfolded."""
    batches = []
    for line in log.batches:
        assert line.seed == batch_seed(log.run_seed, line.index)
        for i in range(line.batches):
            seed = batch_seed(log.run_seed, line.index + i)
            batches.append((seed, line.first + i * line.count, line.count))
    return batches


def test_a_flood_of_batches_leaves_a_short_log(make_submission, tmp_path):
    """Thousands of tiny batches fold into lines that still account for every one of them."""
    log = race(make_submission(HONEST, batch_size="1"), tmp_path / "out", budget=2.0).log
    batches = every_batch(log)
    assert len(batches) == log.images_sampled > 1000
    assert [first for _, first, _ in batches] == list(range(len(batches)))
    wide = race(make_submission(HONEST, name="wide"), tmp_path / "b", 1e6, max_images=16_000).log
    assert len(every_batch(wide)) == 1000
    assert len(wide.batches) < 20


def test_every_image_arrives_with_its_label_and_seed(make_submission, tmp_path):
    """The labels are round robin, the seeds those of the run, and the bundle is class-major."""
    sampled = race(make_submission(HONEST), tmp_path / "out", max_images=47)
    log, data = sampled.log, sampled.data
    assert (log.stop, log.images_sampled, len(data)) == ("images", 47, 47)
    batches = every_batch(log)
    assert [(first, count) for _, first, count in batches] == [(0, 16), (16, 16), (32, 15)]
    assert [seed for seed, _, _ in batches] == [batch_seed(5, index) for index in range(3)]
    assert (np.diff(data.labels) >= 0).all()
    assert (data.images[:, 0, 0, 0] == data.labels).all()
    expected = Counter(
        (int(label), seed % 251)
        for seed, first, count in batches
        for label in round_robin(first, count, 10)
    )
    found = Counter(zip(data.labels.tolist(), data.images[:, 1, 0, 0].tolist(), strict=True))
    assert found == expected
    assert data.images_per_class(10) == (4, 5)


def test_a_run_cut_by_the_deadline_is_balanced(make_submission, tmp_path):
    """Wherever the deadline falls, no class has over one image more than another."""
    slow = HONEST.replace("images =", "import time; time.sleep(0.05); images =")
    sampled = race(make_submission(slow, batch_size="7"), tmp_path / "out", budget=2.5)
    assert sampled.log.stop == "deadline"
    assert sampled.log.images_sampled > 50
    least, most = sampled.data.images_per_class(10)
    assert most - least <= 1
    assert sampled.log.elapsed_seconds < 2.5 + 2


def test_phases_add_up_to_the_elapsed_time(make_submission, tmp_path):
    """Start-up, load, sampling, augmentation, idle and stopping leave no second out."""
    code = HONEST.replace("pass", "import time; time.sleep(0.4)").replace(
        "images = np", "import time; time.sleep(0.1); images = np"
    )
    log = race(make_submission(code), tmp_path / "out", max_images=80).log
    seconds = log.seconds
    total = sum(getattr(seconds, name) for name in seconds.__dataclass_fields__)
    assert total == pytest.approx(log.elapsed_seconds, abs=1e-6)
    assert seconds.load >= 0.4
    assert seconds.sampling >= 0.5
    assert seconds.start_up > 0.01


def test_two_requests_are_kept_in_flight(make_submission, tmp_path):
    """The worker finds the next request on its pipe the moment it has answered one."""
    code = """
    import numpy as np, select, sys, os, time
    class G:
        def setup(self, task): pass
        def generate(self, labels, seed):
            time.sleep(0.05)
            # Descriptor 3 and up: the request pipe the worker moved out of our way.
            waiting = any(select.select([fd], [], [], 0)[0] for fd in (3, 4) if readable(fd))
            return np.full((len(labels), 3, 8, 8), 200 if waiting else 0, np.uint8)
    def readable(fd):
        try:
            import fcntl
            return fcntl.fcntl(fd, fcntl.F_GETFL) & 3 == os.O_RDONLY
        except OSError:
            return False
    """
    sampled = race(make_submission(code), tmp_path / "out", max_images=160)
    values = sampled.data.images[:, 0, 0, 0]
    # All but the last batch, which has no successor.
    assert np.count_nonzero(values == 200) == 144


def test_copies_are_made_in_the_budget_and_follow_their_image(make_submission, tmp_path):
    """pda5 gives one original and four copies, each what the plain function makes of it."""
    sampled = race(make_submission(HONEST), tmp_path / "out", max_images=100, augmentation="pda5")
    log, data = sampled.log, sampled.data
    assert (log.images_sampled, log.images_augmented, len(data)) == (20, 80, 100)
    assert log.augmented_ranges == ((0, 20),)
    plan = get_plan("pda5")
    for place, number in ((0, 0), (5, 10), (50, 5)):  # class 0 twice, class 5 first
        original = data.images[place][None]
        copies = augment(plan, original, [image_seed(5, number)])[0]
        assert (data.images[place + 1 : place + 5] == copies).all()


@pytest.mark.parametrize("seconds", [4.0, 4.4])
def test_a_cut_among_the_copies_leaves_the_bundle_balanced(make_submission, tmp_path, seconds):
    """Copies are kept for whole rounds over the classes: within one image a class, as sampled."""
    slow = HONEST.replace("images =", "import time; time.sleep(0.01); images =")
    sampled = race(
        make_submission(slow, batch_size="7"), tmp_path / "out", seconds, augmentation="pda5"
    )
    log, data = sampled.log, sampled.data
    assert log.stop == "deadline"
    least, most = data.images_per_class(10)
    assert most - least <= 1
    assert len(data) == log.images_sampled + log.images_augmented
    whole = sum(end - first for first, end in log.augmented_ranges)
    assert whole % 10 == 0
    assert log.images_augmented == 4 * whole
    assert whole > 0


def test_images_a_class_count_copies_and_leave_no_class_out(make_submission, tmp_path):
    """Seven images a class with four copies each are one image and its copies in every class."""
    entry = make_submission(HONEST, images_per_class="7")
    data = race(entry, tmp_path / "out", augmentation="pda5").data
    assert data.images_per_class(10) == (5, 5)


IGNORES_EVERYTHING = """
import os, signal, time
import numpy as np

class G:
    def setup(self, task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.calls = 0

    def generate(self, labels, seed):
        self.calls += 1
        if self.calls > 2:
            time.sleep(600)
        return np.zeros((len(labels), 3, 8, 8), np.uint8)
"""


def test_a_crash_keeps_what_came_before(make_submission, tmp_path):
    """The reason is the exception, the images of the batches before it stay."""
    code = HONEST.replace(
        "images[:, 0]",
        "if labels[0] == 2: raise RuntimeError('out of ideas')\n        images[:, 0]",
    )
    sampled = race(make_submission(code), tmp_path / "out")
    log = sampled.log
    assert (log.stop, log.stop_detail) == (
        "crashed",
        "RuntimeError: out of ideas (generate.py, line 10)",
    )
    assert log.images_sampled == 32
    assert "Traceback" in (tmp_path / "out" / "worker.log").read_text()


def test_a_killed_worker_is_told_from_a_finished_one(make_submission, tmp_path):
    """SIGKILL from outside, an out-of-memory kill for instance, is named."""
    code = HONEST.replace(
        "images[:, 0]",
        "if labels[0] == 2:\n            import os; os.kill(os.getpid(), 9)\n        images[:, 0]",
    )
    log = race(make_submission(code), tmp_path / "out").log
    assert log.stop == "crashed"
    assert "SIGKILL" in log.stop_detail
    assert log.images_sampled == 32


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("images[:, :, :4]", "must return shape (16, 3, 8, 8), found (16, 3, 4, 8)"),
        ("images.transpose(0, 2, 3, 1)", "channels come first: images.transpose(0, 3, 1, 2)"),
        ("images[:5]", "must return shape (16, 3, 8, 8), found (5, 3, 8, 8)"),
        ("images / 255", "must return uint8 pixels 0..255, found float64"),
        ("images.tolist()", "must return one NumPy array or torch tensor, found list; join"),
    ],
)
def test_a_broken_contract_ends_the_run_with_its_message(
    make_submission, tmp_path, result, message
):
    """Wrong shape, count, dtype or type: the author reads which, and earlier batches stay."""
    code = HONEST.replace("return images", f"return {result} if labels[0] == 6 else images")
    log = race(make_submission(code), tmp_path / "out").log
    assert log.stop == "refused"
    assert message in log.stop_detail
    assert log.images_sampled == 16


def test_a_flood_of_output_is_cut_and_harms_nothing(make_submission, tmp_path):
    """Prints, to any descriptor, cannot reach the frames; the log keeps beginning and end."""
    code = HONEST.replace(
        "images =",
        "print('spam ' * 100_000); __import__('os').write(2, b'egg ' * 100_000); images =",
    ).replace("return images", "print('last words'); return images")
    sampled = race(make_submission(code), tmp_path / "out", max_images=160)
    assert sampled.log.images_sampled == 160
    text = (tmp_path / "out" / "worker.log").read_text()
    assert len(text) < 1_500_000
    assert text.startswith("spam spam")
    assert "bytes of output left out" in text
    assert text.rstrip().endswith("last words")


def test_no_image_is_an_error_that_says_why(make_submission, tmp_path):
    """An import error is quoted; nothing but the log is left in the folder."""
    submission = make_submission("import no_such_module\n")
    with pytest.raises(SamplingError, match="No module named 'no_such_module'"):
        race(submission, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["worker.log"]


def test_the_deadline_during_setup_is_named(make_submission, tmp_path):
    """A generator whose setup never returns had no image, and the message says it was setup."""
    code = HONEST.replace("pass", "import time; time.sleep(600)")
    with pytest.raises(SamplingError, match="setup had not returned"):
        race(make_submission(code), tmp_path / "out", budget=1.5)


@pytest.mark.usefixtures("terminal_signals")
def test_an_interrupt_keeps_what_came(make_submission, tmp_path):
    """Ctrl-C stops the worker and keeps the images."""
    slow = HONEST.replace("images =", "import time; time.sleep(0.1); images =")

    def interrupt(status: SamplingStatus) -> None:
        if status.images_sampled >= 32 and status.activity == "sampling":
            os.kill(os.getpid(), signal.SIGINT)

    before = children()
    sampled = race(make_submission(slow), tmp_path / "out", on_status=interrupt)
    assert sampled.log.stop == "interrupted"
    assert len(sampled.data) >= 32
    assert children() <= before


def test_a_full_disk_stops_the_run_with_what_fits(make_submission, tmp_path, monkeypatch):
    """When the disk has no room for spool and bundle, the run ends and keeps what it has."""
    real = os.fstatvfs
    calls = 0

    def shrinking(descriptor: int):
        nonlocal calls
        calls += 1
        found = list(real(descriptor))
        found[4] = (20 << 20) // found[1] if calls <= 3 else 0  # f_bavail, of f_frsize bytes
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", shrinking)
    sampled = race(make_submission(HONEST), tmp_path / "out")
    assert sampled.log.stop == "disk-full"
    assert "no room" in sampled.log.stop_detail
    assert len(sampled.data) == sampled.log.images_sampled == 48


def test_a_torch_tensor_is_as_good_as_an_array(make_submission, tmp_path):
    """generate may return a torch tensor."""
    code = HONEST.replace("import numpy as np", "import numpy as np, torch").replace(
        "return images", "return torch.from_numpy(images)"
    )
    sampled = race(make_submission(code), tmp_path / "out", budget=60, max_images=32)
    assert (sampled.data.images[:, 0, 0, 0] == sampled.data.labels).all()


ANSWERS_UNASKED = """
import os, struct, time
import numpy as np

class G:
    def setup(self, task):
        pass

    def generate(self, labels, seed):
        import fcntl
        frames = next(
            fd for fd in range(3, 10)
            if open_fd(fd) and fcntl.fcntl(fd, fcntl.F_GETFL) & 3 == os.O_WRONLY
        )
        index = 0
        while True:
            header = struct.pack("<4sHHIIIIQ", b"DDC1", 5, 3, index, 16, 8, 8, 3072)
            os.write(frames, header + bytes(3072))
            index += 1

def open_fd(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
"""


def test_a_worker_that_does_not_read_its_requests_cannot_block_us(make_submission, tmp_path):
    """Answers without end and requests unread: refused when the request pipe is full."""
    started = time.monotonic()
    log = race(make_submission(ANSWERS_UNASKED), tmp_path / "out", budget=60).log
    assert time.monotonic() - started < 40
    assert (log.stop, log.stop_detail) == ("refused", "the worker does not read its requests")
    assert log.images_sampled > 16


def test_frames_without_end_do_not_hold_up_the_stop(make_submission, tmp_path):
    """A SIGTERM handler that floods the frame pipe with complaints is killed all the same."""
    code = HONEST.replace(
        "pass",
        """
        import os, signal, struct
        frame = struct.pack("<4sHHIIIIQ", b"DDC1", 6, 0, 0, 0, 0, 0, 0) * 1000
        def flood(*_):
            while True:
                for fd in range(3, 10):
                    try:
                        os.write(fd, frame)
                    except OSError:
                        pass
        signal.signal(signal.SIGTERM, flood)
""",
    ).replace("images =", "import time; time.sleep(0.05); images =")
    started = time.monotonic()
    log = race(make_submission(code), tmp_path / "out", budget=2.0).log
    assert time.monotonic() - started < 2.0 + 2.0 + 1.0  # one second of Python around the race
    assert log.stop == "deadline"
    assert log.images_sampled > 16


def test_a_dead_augmentation_pool_ends_the_run_with_its_reason(make_submission, tmp_path):
    """Its processes killed after the last batch came: the run ends at once and says why."""
    killed = []

    def kill_pool(status: SamplingStatus) -> None:
        if status.images_sampled == 2000 and not killed:
            for child in psutil.Process().children():
                zombie = child.status() == psutil.STATUS_ZOMBIE  # of an earlier test
                if not zombie and "ddchallenge.augment" in " ".join(child.cmdline()):
                    killed.append(child.pid)
                    child.kill()

    started = time.monotonic()
    log = race(
        make_submission(HONEST, batch_size="2000"), tmp_path / "out", 60,
        max_images=10_000, augmentation="pda5", on_status=kill_pool,
    ).log  # fmt: skip
    assert killed
    assert time.monotonic() - started < 30
    assert log.stop == "crashed"
    assert "augmentation processes ended" in log.stop_detail


@pytest.mark.usefixtures("terminal_signals")
def test_a_second_interrupt_does_not_cut_the_stopping_short(make_submission, tmp_path):
    """Ctrl-C twice, the second while the worker ignores SIGTERM: images kept, nothing left."""
    code = IGNORES_EVERYTHING.replace("self.calls > 2", "self.calls > 3")
    before = children()

    def interrupt(status: SamplingStatus) -> None:
        if status.images_sampled >= 32 and status.activity == "sampling":
            threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
            os.kill(os.getpid(), signal.SIGINT)

    sampled = race(make_submission(code), tmp_path / "out", on_status=interrupt)
    assert sampled.log.stop == "interrupted"
    assert len(sampled.data) >= 32
    assert children() <= before


def test_what_a_submission_says_cannot_reach_the_terminal(make_submission, tmp_path):
    """Escape sequences in an exception's text are question marks in the log."""
    code = HONEST.replace("images[:, 0]", r"raise ValueError('\x1b[2Jgone'); images[:, 0]")
    with pytest.raises(SamplingError, match=r"ValueError: \?\[2Jgone"):
        race(make_submission(code), tmp_path / "out")


def test_a_deadline_among_the_copies_is_a_deadline(make_submission, tmp_path):
    """All images sampled, not all copies made: the deadline ended the run, and it is balanced."""
    entry = make_submission(HONEST, batch_size="500")
    sampled = race(entry, tmp_path / "out", 5.0, max_images=500_000, augmentation="pda5")
    log = sampled.log
    assert log.images_sampled == 100_000
    assert 0 < log.images_augmented < 400_000
    assert log.stop == "deadline"
    least, most = sampled.data.images_per_class(10)
    assert most - least <= 1


def test_a_worker_that_leaves_when_all_is_done_has_not_crashed(make_submission, tmp_path):
    """It handed over everything and died while copies were made: all images, no blame."""
    code = HONEST.replace(
        "images[:, 0]",
        "import os, threading; threading.Timer(0.3, os._exit, (0,)).start()\n        images[:, 0]",
    )
    entry = make_submission(code, batch_size="4000")
    sampled = race(entry, tmp_path / "out", max_images=20_000, augmentation="pda5")
    assert sampled.log.stop == "images"
    assert len(sampled.data) == 20_000


@pytest.mark.parametrize(("limit", "least", "most"), [(75, 5, 6), (20, 0, 5), (100, 10, 10)])
def test_a_limit_that_is_no_multiple_leaves_the_bundle_balanced(
    make_submission, tmp_path, limit, least, most
):
    """75 images with copies: one round of five a class, and single images of the next round."""
    data = race(
        make_submission(HONEST), tmp_path / "out", max_images=limit, augmentation="pda5"
    ).data
    assert data.images_per_class(10) == (least, most)


def test_nothing_of_the_users_is_removed(make_submission, tmp_path):
    """A folder called work, and an empty output folder, stay where they were."""
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    (out / "work" / "precious").write_text("mine")
    with pytest.raises(OutputError, match="cannot be made"):
        race(make_submission(HONEST), out)
    assert (out / "work" / "precious").read_text() == "mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SamplingError):
        race(make_submission("import no_module", name="other"), empty)
    assert empty.is_dir()


def test_a_long_complaint_is_cut_and_stays_readable(make_submission, tmp_path):
    """Twelve kilobytes of exception text become four, whatever is said after them."""
    code = HONEST.replace(
        "images[:, 0]", "if labels[0] == 2: raise ValueError('x' * 12_000)\n        images[:, 0]"
    )
    log = race(make_submission(code), tmp_path / "out", augmentation="pda5").log
    assert log.stop == "crashed"
    assert 4000 < len(log.stop_detail) < 5000
    assert printable(log.stop_detail) == log.stop_detail


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MiB, for whoever may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("hog", ["the images", "a file that was deleted"])
def test_a_truly_full_disk_loses_nothing_that_fits(make_submission, small_disk, hog):
    """Images until the disk is full, or a file nobody sees: a whole bundle of what came."""
    code = HONEST
    if hog != "the images":
        code = code.replace("pass", "self.calls = 0; self.place = task.working_dir").replace(
            "images =",
            "self.calls += 1\n"
            "        if self.calls == 4:\n"
            "            self.file = open(self.place / 'hog', 'wb', buffering=0)\n"
            "            (self.place / 'hog').unlink()\n"
            "            try:\n"
            "                while True: self.file.write(bytes(1 << 20))\n"
            "            except OSError: pass\n"
            "        images =",
        )
    order = order_for(make_submission(code, batch_size="512"), 60)
    bundle = sample_bundle(order, None, small_disk / "out")
    log = bundle.manifest.sampling
    assert log.stop == "disk-full"
    assert len(bundle.data) == log.images_sampled >= 3 * 512
    assert (bundle.data.images[:, 0, 0, 0] == bundle.data.labels).all()
    assert len(read_bundle(small_disk / "out" / "bundle").data) == len(bundle.data)
    assert not (small_disk / "out" / "spool.bin").exists()


def test_a_worker_that_dies_late_is_kept_and_marked(make_submission, tmp_path):
    """What it gave before it died is a bundle like any other, and every table says why it ends."""
    code = HONEST.replace(
        "images[:, 0]",
        "import os, time; time.sleep(0.05)\n"
        "        if labels[0] == 8 and time.monotonic() > self.started + 1: os._exit(7)\n"
        "        images[:, 0]",
    ).replace("pass", "import time; self.started = time.monotonic()")
    bundle = sample_bundle(order_for(make_submission(code), 60), None, tmp_path / "out")
    log = bundle.manifest.sampling
    assert log.stop == "crashed"
    assert "the worker ended with exit status 7" in log.stop_detail
    assert len(bundle.data) == log.images_sampled >= 5 * 16
    protocol = get_protocol("eccv2024")
    marks = marks_of(bundle.manifest, SPEC, protocol, protocol.epochs, protocol.seeds)
    assert "stopped early: crashed" in marks
