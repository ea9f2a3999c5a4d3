"""What a worker process is given, what it is not, and what becomes of it without a supervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from racing import HONEST, living, race

from ddchallenge.errors import RequestError, SamplingError
from ddchallenge.sampling.launchers import Places, default_limits, sandbox
from ddchallenge.sampling.launchers.hiding import hidden_paths, visible_paths
from ddchallenge.sampling.launchers.process import ProcessLauncher
from ddchallenge.sampling.launchers.variables import (
    PASSED,
    PASSED_PREFIXES,
    SET,
    passed_variables,
)

README = Path(__file__).parents[1] / "README.md"

# Fails on purpose: what it found is in the message.
TELLS = """
import json, os, resource
class G:
    def setup(self, task):
        {tell}
        raise RuntimeError("FOUND" + json.dumps(found))
    def generate(self, labels, seed): ...
"""


def told(make_submission, folder, tell, **changes):
    """What an expression, evaluated by a submission, gives."""
    with pytest.raises(SamplingError) as failure:
        race(make_submission(TELLS.format(tell=tell)), folder, **changes)
    found = re.search(r"FOUND(.*) \(generate.py, line \d+\)", str(failure.value))
    assert found, str(failure.value)
    return json.loads(found[1])


def test_only_listed_variables_are_passed(make_submission, tmp_path, monkeypatch):
    """Tokens, secrets and the harness's own settings stay here; the record names what went."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("CUDA_API_KEY", "secret")  # the prefix is listed, the word is not
    monkeypatch.setenv("DDCHALLENGE_DATA", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    launcher = ProcessLauncher()
    found = told(make_submission, tmp_path / "out", "found = dict(os.environ)", launcher=launcher)
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["TMPDIR"] == str(tmp_path / "out" / "work" / "tmp")
    assert "secret" not in found.values()
    assert not [name for name in found if name.startswith("DDCHALLENGE")]
    # LC_CTYPE is Python's own doing (PEP 538).
    assert set(found) - {"LC_CTYPE"} == set(launcher.record().environment) - {"LC_CTYPE"}


def test_the_readme_lists_the_variables():
    """The list for people is the list in the code."""
    text = README.read_text()
    for name in (*PASSED, *SET, *(f"{prefix}*" for prefix in PASSED_PREFIXES)):
        assert f"`{name}`" in text, name


def test_words_for_secrets_outweigh_the_list():
    """A listed prefix does not let a token through."""
    given = {"TORCH_HOME": "a", "CUDA_AUTH": "b", "PYTORCH_TOKEN": "c", "omp_token": "d"}
    assert passed_variables(given) == {"TORCH_HOME": "a"}


def test_no_descriptor_is_inherited(make_submission, tmp_path):
    """Input, output, error, requests and frames; an open file of ours is not among them."""
    with (tmp_path / "ours").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        tell = "found = {n: os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd')"
        tell += " if os.path.exists('/proc/self/fd/' + n)}"
        found = told(make_submission, tmp_path / "out", tell)
    places = sorted(place.partition(":")[0] for place in found.values())
    # 0 is empty; 1 and 2 are the output, then requests and frames.
    assert places == ["/dev/null", "pipe", "pipe", "pipe", "pipe"], found


def test_limits_are_in_force(make_submission, tmp_path):
    """Core dumps, open files, file size and processors, and not a capability to mount with."""
    launcher = ProcessLauncher(
        replace(default_limits(), open_files=123, disk_bytes=1 << 20, cpus=1)
    )
    tell = (
        "found = [resource.getrlimit(n) for n in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE,"
        " resource.RLIMIT_FSIZE)]"
        " + [len(os.sched_getaffinity(0)), os.getsid(0) == os.getpid() == os.getpgid(0)]"
        " + [l.split()[1] for l in open('/proc/self/status')"
        " if l.startswith(('CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp:'))]"
    )
    found = told(make_submission, tmp_path / "out", tell, launcher=launcher)
    assert found[:5] == [[0, 0], [123, 123], [1 << 20, 1 << 20], 1, True]
    effective, bounding, no_new_privileges, seccomp = found[5:]
    only_override = 1 << 1
    assert int(effective, 16) | only_override == only_override
    assert os.getuid() != 0 or int(bounding, 16) == only_override
    assert (no_new_privileges, seccomp) == ("1", "2")


def test_what_generators_share_work_with_goes_on_working(make_submission, tmp_path):
    """Locks, queues, pools and data loaders with workers, forked and spawned; pinned threads."""
    code = """
    import json, multiprocessing, os, threading
    import torch
    class Rows(torch.utils.data.Dataset):
        def __len__(self): return 8
        def __getitem__(self, n): return torch.full((4,), float(n))
    def put(queue, lock):
        with lock:
            queue.put(3)
    class G:
        def setup(self, task):
            found = []
            for method in ("fork", "spawn"):
                context = multiprocessing.get_context(method)
                queue, lock = context.Queue(), context.Lock()
                process = context.Process(target=put, args=(queue, lock))
                process.start()
                found.append(queue.get(timeout=60))
                process.join()
                with context.Pool(2) as pool:
                    found.append(sum(pool.map(abs, [-1, -2])))
                loader = torch.utils.data.DataLoader(
                    Rows(), batch_size=2, num_workers=2, multiprocessing_context=context
                )
                found.append(int(sum(batch.sum() for batch in loader)))
            done = threading.Event()
            thread = threading.Thread(target=done.wait)
            thread.start()
            os.sched_setaffinity(thread.native_id, os.sched_getaffinity(0))
            done.set()
            raise RuntimeError("FOUND" + json.dumps(found))
        def generate(self, labels, seed): ...
    """
    with pytest.raises(SamplingError, match=r"FOUND\[3, 3, 112, 3, 3, 112\]"):
        race(make_submission(code), tmp_path / "out", 120)


def test_more_memory_than_there_is_is_refused():
    """The message names both and what to do."""
    with pytest.raises(RequestError, match=r"limit of 4,096\.0 GiB is above the [\d.,]+ GiB this"):
        ProcessLauncher(replace(default_limits(), memory_bytes=4 << 40))


def test_more_processors_than_there_are_are_refused():
    """As the container does it."""
    with pytest.raises(RequestError, match=r"9999 processors cannot be had: this machine has \d+"):
        ProcessLauncher(replace(default_limits(), cpus=9999))


def test_packages_that_are_not_installed_are_said(make_submission):
    """One line: a process runs with this environment's packages."""
    submission = make_submission(HONEST)
    (submission.folder / "requirements.lock").write_text("")
    lines = []
    ProcessLauncher().prepare(submission, "cpu", lines.append)
    (line,) = [line for line in lines if "requirements.lock" in line]
    assert "is not installed here" in line
    assert "--launcher container" in line


def test_a_machine_without_landlock_says_so(make_submission, tmp_path, monkeypatch):
    """The run goes on, the record has None, and one line warns."""
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: None)
    launcher = ProcessLauncher()
    lines = []
    launcher.prepare(make_submission(HONEST, name="other"), "cpu", lines.append)
    assert len(lines) == 1
    assert "has no Landlock" in lines[0]
    sampled = race(make_submission(HONEST), tmp_path / "out", max_images=16, launcher=launcher)
    assert sampled.launch.landlock is None
    assert len(sampled.data) == 16
    assert not any("files:" in line for line in sampled.launch.sandbox)


@pytest.mark.parametrize("landlock", [True, False], ids=["landlock", "none"])
def test_a_fork_chain_is_caught_without_landlock_too(
    make_submission, tmp_path, monkeypatch, landlock
):
    """A process that forks and dies all the time has a new number whenever one looks for it."""
    if not landlock:
        monkeypatch.setattr(sandbox, "landlock_abi", lambda: None)
    code = """
    import ctypes, os, signal, time
    import numpy as np
    class G:
        def setup(self, task):
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    ctypes.CDLL(None).prctl(15, b"cheat-chain", 0, 0, 0)
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    until = time.monotonic() + 20
                    while time.monotonic() < until:
                        if os.fork():
                            os._exit(0)
                    os._exit(0)
        def generate(self, labels, seed):
            time.sleep(0.1)
            return np.zeros((len(labels), 3, 8, 8), np.uint8)
    """
    seen = []
    log = race(
        make_submission(code), tmp_path / "out", 2.0,
        on_status=lambda status: seen.append(len(living("cheat-chain"))),
    ).log  # fmt: skip
    assert max(seen) > 0
    assert "cannot be killed" not in log.stop_detail
    assert log.elapsed_seconds < 2.0 + 2.0
    time.sleep(0.1)
    assert not living("cheat-chain")


STUBBORN = HONEST.replace(
    "pass",
    """
        import ctypes, os, signal, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                ctypes.CDLL(None).prctl(15, b"cheat-orphan", 0, 0, 0)
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_IGN)
                time.sleep(600)
            os._exit(0)
""",
).replace("images =", "import time; time.sleep(0.05); images =")


@pytest.mark.parametrize("killed", ["supervisor", "guardian"])
def test_nothing_outlives_its_supervisor(make_submission, tmp_path, killed):
    """kill -9 of either: no worker is left, and no grandchild in a session of its own."""
    submission = make_submission(STUBBORN)
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        try:
            race(submission, out, budget=60)
        finally:
            os._exit(0)
    try:
        spool = out / "spool.bin"
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if living("cheat-orphan") and spool.exists() and spool.stat().st_size:
                break
            time.sleep(0.05)
        family = psutil.Process(child).children(recursive=True)
        assert len(family) >= 3
        assert living("cheat-orphan")
        if killed == "supervisor":
            os.kill(child, signal.SIGKILL)
        else:
            guardian = next(p for p in family if "guardian.py" in " ".join(p.cmdline()))
            guardian.kill()
            until = time.monotonic() + 20
            while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                time.sleep(0.05)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
        assert not living("cheat-orphan")
        assert spool.stat().st_size > 0
    finally:
        if killed == "supervisor":
            os.waitpid(child, 0)


def test_visible_paths_leave_out_what_is_hidden_and_nothing_beside_it(tmp_path):
    """Neighbours at every level are named; links, the hidden folder and what is in it are not."""
    for name in ("a/data/test", "a/data/train", "a/other", "b", "code/__pycache__", "out/work"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("code/generate.py", "code/README.md", "code/__pycache__/x.pyc"):
        (tmp_path / name).touch()
    (tmp_path / "a/link").symlink_to(tmp_path / "a/data")
    places = Places(
        submission=tmp_path / "code",
        working_dir=tmp_path / "out/work",
        training_data=tmp_path / "a/data/train",
    )
    hidden = hidden_paths([tmp_path / "a/data"], places)
    found = visible_paths(places, hidden, shared_memory=True)
    here = [path for path in found["read"] if path.startswith(str(tmp_path))]
    names = sorted(str(Path(path).relative_to(tmp_path)) for path in here)
    assert names == ["a/data/train", "a/other", "b", "code/generate.py"]
    assert str(tmp_path / "out/work") in found["write"]
    assert not any(path.startswith("/dev/") for path in found["read"])
    assert {"/dev/null", "/dev/shm"} <= set(found["write"])
    assert "/dev/shm" not in visible_paths(places, hidden, shared_memory=False)["write"]


def test_links_usual_folders_and_other_runs_are_hidden(tmp_path, monkeypatch):
    """What data folders link to, where caches usually are, and the bundles beside this run."""
    for name in ("real/cifar", "real/test", "data/tiny", "out/work", "old/bundle", "code"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "real/zip").write_bytes(b"zip")
    (tmp_path / "data/cifar").symlink_to("../real/cifar")
    (tmp_path / "data/tiny/test").symlink_to(tmp_path / "real/test")
    (tmp_path / "data/some.zip").symlink_to(tmp_path / "real/zip")
    (tmp_path / "data/round").symlink_to("round")
    (tmp_path / "data/all").symlink_to("/")
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "usual"))
    places = Places(
        submission=tmp_path / "code", working_dir=tmp_path / "out/work", training_data=None
    )
    hidden = hidden_paths([tmp_path / "data"], places)
    expected = ("real/cifar", "real/test", "real/zip", "usual/ddchallenge", "elsewhere", "old")
    assert {tmp_path / name for name in expected} <= set(hidden)
    assert Path("/") not in hidden
    assert tmp_path / "code" not in hidden
    assert Path("/var/lib/containers") in hidden
