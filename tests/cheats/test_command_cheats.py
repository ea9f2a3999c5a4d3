"""Commands that want more time, or another's file, or to reach whoever reads theirs."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from commanding import COPIES, SPEC, make_command, order_for, tensor

from ddchallenge.audit import audit
from ddchallenge.datasets import load_split
from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import SamplingError
from ddchallenge.pipeline import sample_bundle
from ddchallenge.sampling.launchers import default_limits
from ddchallenge.sampling.launchers.process import ProcessLauncher

MARK = f"ddchallenge-cheat-{os.getpid()}"


class Sightings:
    """The processes of a run: seen while it went on, and what is left of them."""

    def __init__(self) -> None:
        self.seen: set[psutil.Process] = set()

    def __call__(self, status) -> None:
        for process in psutil.process_iter():  # those in a container are no children of ours
            try:
                if MARK in " ".join(process.cmdline()):
                    self.seen.add(process)
            except psutil.Error:
                continue

    def left(self) -> set[psutil.Process]:
        return {
            process
            for process in self.seen
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        }


def refused(entry, out: Path, **changes) -> str:
    """Why the run failed; nothing was made of it, and none of its files is left to be written."""
    on_status = changes.pop("on_status", None)
    with pytest.raises(SamplingError) as failure:
        sample_bundle(order_for(entry, **changes), None, out, on_status)
    assert not (out / "bundle").exists()
    assert not (out / "work").exists()
    return str(failure.value)


# ------------------------------------------------------------------------------------ after the end

# A child of its own session that outlives its parent, whatever is done to it in politeness.
DAEMON = f"""
import os, shutil, signal, subprocess, sys, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
daemon = '''
import os, shutil, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if os.fork(): os._exit(0)
os.setsid()
%s
'''
subprocess.Popen([sys.executable, "-c", daemon, "{MARK}"], start_new_session=True)
"""


def daemon(what: str, then: str = "time.sleep(600)") -> str:
    return DAEMON % what + then + "\n"


@pytest.mark.parametrize("then", ["time.sleep(600)", "time.sleep(1)"], ids=["stays", "leaves"])
def test_a_file_written_after_the_end_does_not_count(tmp_path, box, then):
    """Neither after the deadline nor after the command: all of the run is killed, then looked."""
    late = 2.3 if then == "time.sleep(600)" else 1.3
    entry = make_command(
        tmp_path, daemon(f'time.sleep({late}); shutil.copy("ready.pt", "digits.pt")', then)
    )
    seen = Sightings()
    text = refused(entry, tmp_path / "out", budget=2.0, on_status=seen, launcher=box())
    assert "there is no digits.pt" in text
    assert seen.seen
    assert not seen.left()
    time.sleep(0.7)
    assert not list(tmp_path.glob("out/**/digits.pt"))
    assert not (tmp_path / "out" / "output.pt").exists()


class SlowToKill(ProcessLauncher):
    """Leaves what is to be stopped another third of a second, so that a test can rely on it."""

    def start(self, places, spare=tuple):
        worker = super().start(places, spare)
        stop = worker.stop

        def later(meanwhile, **how):
            time.sleep(0.3)
            return stop(meanwhile, **how)

        worker.stop = later
        return worker


TOUCHING = {
    "grows": """
f = open("digits.pt", "ab", buffering=0)
while True:
    f.write(b"x")
    time.sleep(0.01)
""",
    # With the old one's times set on the new one, and the same size.
    "swapped": """
was = os.stat("digits.pt")
while True:
    shutil.copy("ready.pt", "next.pt")
    os.utime("next.pt", ns=(was.st_atime_ns, was.st_mtime_ns))
    os.rename("next.pt", "digits.pt")
    time.sleep(0.01)
""",
    "rewritten": """
while True:
    was = os.stat("digits.pt")
    with open("digits.pt", "r+b") as f: f.write(open("ready.pt", "rb").read())
    os.utime("digits.pt", ns=(was.st_atime_ns, was.st_mtime_ns))
    time.sleep(0.01)
""",
}


@pytest.mark.parametrize("how", TOUCHING)
def test_a_file_touched_after_the_deadline_is_not_taken(tmp_path, how):
    """What it is when all are dead must be what it was at the deadline, to the inode."""
    entry = make_command(tmp_path, COPIES + daemon(TOUCHING[how]))
    seen = Sightings()
    out = tmp_path / "out"
    text = refused(entry, out, budget=2.0, on_status=seen, launcher=SlowToKill())
    assert "digits.pt was still being written when the time was up" in text
    assert seen.seen
    assert not seen.left()


def test_a_whole_file_counts_whoever_is_still_there(tmp_path, box):
    """The same daemon, idle: the file was whole, so it is taken, and nothing is left running."""
    seen = Sightings()
    entry = make_command(tmp_path, COPIES + daemon("time.sleep(600)"))
    began = time.monotonic()
    bundle = sample_bundle(
        order_for(entry, budget=2.0, launcher=box()), None, tmp_path / "out", seen
    )
    assert time.monotonic() - began < 10
    assert (bundle.data.images == tensor().numpy()).all()
    assert bundle.manifest.sampling.stop == "deadline"
    assert seen.seen
    assert not seen.left()


# ----------------------------------------------------------------------------------- no file at all


@pytest.mark.parametrize("kind", ["link", "link to a folder", "folder", "pipe", "device"])
def test_only_a_plain_file_of_its_own_is_taken(tmp_path, kind):
    """A link to the test set, a folder, a pipe that would block: none of them is opened."""
    secret = tmp_path / "secret.pt"
    torch.save(tensor(), secret)
    test = load_split(SPEC, "test").folder
    made = {
        "link": f'os.symlink({str(secret)!r}, "digits.pt")',
        "link to a folder": f'os.symlink({str(test)!r}, "digits.pt")',
        "folder": 'os.mkdir("digits.pt")',
        "pipe": 'os.mkfifo("digits.pt")',
        "device": 'os.symlink("/dev/zero", "digits.pt")',
    }
    entry = make_command(tmp_path, f"import os\n{made[kind]}\n")
    text = refused(entry, tmp_path / "out")
    assert "digits.pt is no plain file" in text
    assert secret.exists()


def test_a_working_folder_that_was_swapped_is_not_looked_into(tmp_path):
    """The folder was opened before the command ran: another of its name is another folder."""
    other = tmp_path / "other"
    other.mkdir()
    torch.save(tensor(), other / "digits.pt")
    code = f"""
    import os
    work = os.getcwd()
    try:
        os.rename(work, work + "-moved")
        os.symlink({str(other)!r}, work)
    except OSError as error:
        print(error)
    """
    text = refused(make_command(tmp_path, code), tmp_path / "out")
    assert "there is no digits.pt" in text


@pytest.mark.parametrize("output", ["../../x", "/tmp/x", "..", "a/b.pt", ".hidden", "x\\u0000y"])
def test_an_output_elsewhere_is_refused(tmp_path, output):
    """A name that leads out of the working folder never gets as far as a run."""
    from ddchallenge.errors import SubmissionError

    with pytest.raises(SubmissionError, match="output must be a plain file name"):
        make_command(tmp_path, COPIES, output=f'"{output}"')


# ------------------------------------------------------------------------------- against the reader


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["archive", "bare"])
def test_a_pickle_that_would_execute_is_refused(tmp_path, form):
    """It is named and not run; unpickled carelessly it would have left a file."""
    harm = tmp_path / "harm"
    attack = Attack(harm)
    entry = make_command(tmp_path, COPIES)
    if form == "archive":
        torch.save([tensor(), attack], entry.folder / "ready.pt")
    else:
        (entry.folder / "ready.pt").write_bytes(pickle.dumps(attack))
    text = refused(entry, tmp_path / "out")
    assert "system" in text if form == "archive" else "not a whole file of torch.save" in text
    assert not harm.exists()
    if form == "archive":
        torch.load(entry.folder / "ready.pt", weights_only=False)
    else:
        pickle.loads((entry.folder / "ready.pt").read_bytes())  # noqa: S301 - ours, to prove it
    assert harm.exists()


def test_a_claim_of_a_terabyte_takes_no_memory(tmp_path):
    """A tensor expanded to 2^40 values out of one, and an archive that names such a size."""
    entry = make_command(tmp_path, COPIES)
    one = torch.zeros(1, 3, 8, 8).expand((1 << 40) // 192, 3, 8, 8)
    torch.save(one, entry.folder / "ready.pt")
    assert "claims" in refused(entry, tmp_path / "expanded")

    honest = BytesIO()
    torch.save(tensor(), honest)
    with (
        zipfile.ZipFile(honest) as old,
        zipfile.ZipFile(entry.folder / "ready.pt", "w") as new,
    ):
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl"):
                # As pickle writes them: 5760 values in the storage and 30 images; now 2^31 - 1.
                for small in (b"M\x80\x16", b"K\x1e"):
                    assert content.count(small) == 1
                    content = content.replace(small, b"J\xff\xff\xff\x7f")
            new.writestr(info.filename, content)
    text = refused(entry, tmp_path / "claimed")
    assert "claims" in text or "is not a usable tensor file" in text


def test_a_file_larger_than_allowed_is_not_read(tmp_path):
    """A hole of a gigabyte takes no disk, and no memory either: its size is looked at first."""
    limits = replace(default_limits(), memory_bytes=1 << 30, disk_bytes=8 << 30)
    code = 'import os\nos.truncate(os.open("digits.pt", os.O_CREAT | os.O_RDWR), 1 << 30)\n'
    entry = make_command(tmp_path, code)
    text = refused(entry, tmp_path / "out", launcher=ProcessLauncher(limits))
    assert "digits.pt has 1.1 GB, more than the 0.5 GB allowed" in text


def test_a_file_of_a_terabyte_cannot_be_made(tmp_path):
    """The box lets no file become larger than its working folder may."""
    code = 'import os\nos.truncate(os.open("digits.pt", os.O_CREAT | os.O_RDWR), 1 << 40)\n'
    text = refused(make_command(tmp_path, code), tmp_path / "out")
    assert "the command ended with exit status 1" in text


def test_many_files_fill_no_more_than_allowed(tmp_path, box):
    """All files together are bounded as well, in a container too, though its folder is ours."""
    code = """
        import time
        for number in range(64):
            with open(f"part-{number}", "wb") as file:
                file.write(bytes(8 << 20))
            time.sleep(0.05)
        time.sleep(600)
    """
    launcher = box(disk_bytes=64 << 20)
    text = refused(make_command(tmp_path, code), tmp_path / "out", launcher=launcher)
    assert "It was over after" in text
    assert "MiB of files, 64 MiB are allowed" in text
    assert not (tmp_path / "out" / "output.pt").exists()


def test_the_frames_are_out_of_reach(tmp_path):
    """The command has no descriptor of the worker's: what it prints cannot look like a frame."""
    from ddchallenge.sampling.wire import Header, Kind

    forged = Header(kind=Kind.DONE).pack()
    code = f"""
    import os, time
    for number in range(3, 64):
        try:
            os.write(number, {forged!r})
        except OSError:
            continue
        print("wrote to", number)
    os.write(1, {forged!r})
    time.sleep(1)
    import shutil
    shutil.copy("ready.pt", "digits.pt")
    """
    bundle = sample_bundle(order_for(make_command(tmp_path, code)), None, tmp_path / "out")
    assert bundle.manifest.sampling.elapsed_seconds > 1
    assert b"wrote to" not in (tmp_path / "out" / "worker.log").read_bytes()


def test_normalised_test_images_are_recognised(tmp_path):
    """Float images are held against the test set too: as the pixels they were made of."""
    test = load_split(SPEC, "test").data
    some = np.concatenate([np.flatnonzero(test.labels == c)[:3] for c in range(10)])
    entry = make_command(tmp_path, COPIES)
    stolen = normalise(SPEC, np.asarray(test.images)[some])
    torch.save(torch.from_numpy(stolen), entry.folder / "ready.pt")
    bundle = sample_bundle(order_for(entry), None, tmp_path / "out")
    findings = {finding.code: finding for finding in audit(bundle.data, SPEC, test)}
    assert findings["test-images"].level == "error"
    assert "30 of 30 images are test images" in findings["test-images"].text
