"""The container launcher: what it cuts off, how it stops, what becomes of it without supervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from racing import HONEST, SPEC, living, race

from ddchallenge.datasets import load_split
from ddchallenge.errors import RequestError, RunError, SamplingError
from ddchallenge.records import Limits
from ddchallenge.sampling.launchers import Places, container, default_limits
from ddchallenge.sampling.launchers.box import box_environment, box_options, breaches
from ddchallenge.sampling.launchers.cgroup import ControlGroup
from ddchallenge.sampling.launchers.container import ContainerLauncher
from ddchallenge.sampling.launchers.engine import Engine, find_engine

TESTS = Path(__file__).parent
SMALL = replace(default_limits(), memory_bytes=1 << 30, processes=200, disk_bytes=64 << 20)

# Fails on purpose: what it found is in the message.
TELLS = """
import json, os, resource
from pathlib import Path
class G:
    def setup(self, task):
        {tell}
        raise RuntimeError("FOUND" + json.dumps(found))
    def generate(self, labels, seed): ...
"""


def told(make_submission, folder, tell, **changes):
    """What an expression, evaluated by a submission in a container, gives."""
    changes.setdefault("launcher", ContainerLauncher(SMALL))
    settings = changes.pop("settings", {})
    with pytest.raises(SamplingError) as failure:
        race(make_submission(TELLS.format(tell=tell), **settings), folder, **changes)
    found = re.search(r"FOUND(.*) \(generate.py, line \d+\)", str(failure.value))
    assert found, str(failure.value)
    return json.loads(found[1])


def containers(engine: Engine, supervisor: int | None = None) -> list[str]:
    """The containers of a supervisor, by their label; of this process's if none is named."""
    label = f"ddchallenge.supervisor={supervisor or os.getpid()}@{socket.gethostname()}"
    listed = engine.read("ps", "--all", "--filter", f"label={label}", "--format", "{{.Names}}")
    return (listed or "").split()


# --------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("engine_name", ["docker", "podman"])
def test_every_wall_is_asked_for(engine_name):
    """The list of the issue, for either engine; the GPU only where it was asked for."""
    limits = Limits(memory_bytes=1 << 30, processes=99, open_files=77, disk_bytes=1 << 40, cpus=1.5)
    options = box_options(engine_name, limits, gpu=False)
    assert {
        ("--network", "none"),
        ("--read-only", "true"),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--user", "10001:10001"),
        ("--pids-limit", "99"),
        ("--memory", str(1 << 30)),
        ("--memory-swap", str(1 << 30)),
        ("--cpus", "1.5"),
        ("--ulimit", "nofile=77:77"),
        ("--log-driver", "none"),
        ("--pull", "never"),
    } <= set(options)
    direct = dict(box_options(engine_name, limits, gpu=False, direct=True))
    assert direct["--log-driver"] == "passthrough"
    # However much disk it may have, it is memory here.
    assert f"size={1 << 29}," in dict(options)["--tmpfs"]
    assert not {"--gpus", "--device", "--volume", "--mount", "--privileged"} & {
        o for o, _ in options
    }
    gpu = set(box_options(engine_name, limits, gpu=True)) - set(options)
    assert gpu == {
        ("--gpus", "all") if engine_name == "docker" else ("--device", "nvidia.com/gpu=all")
    }


def test_no_path_of_this_machine_and_no_proxy_goes_into_the_box(monkeypatch):
    """Settings of libraries do; docker's own proxies are overwritten with nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_HOME", "/usr/local/cuda")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/here")
    monkeypatch.setenv("https_proxy", "http://user:password@proxy")
    for name in ("podman", "docker"):
        found = box_environment(name)
        assert found["OMP_NUM_THREADS"] == "3"
        assert not {"CUDA_HOME", "HF_TOKEN", "LD_LIBRARY_PATH", "PATH"} & set(found)
        assert found["HOME"] == "/work"
        assert found.get("https_proxy", "") == ""
    assert "https_proxy" in box_environment("docker")


def test_a_box_that_is_not_closed_is_noticed():
    """Each wall that does not stand is named."""
    good = {
        "user": 10001, "capabilities": 0, "no_new_privileges": 1, "interfaces": ["lo"],
        "writable": [], "memory": 1 << 20, "processes": 5, "gpu": False,
    }  # fmt: skip
    limits = Limits(memory_bytes=1 << 20, processes=5)
    assert breaches(good, limits, gpu=False) == []
    bad = {
        "user": 0, "capabilities": 1, "no_new_privileges": 0, "interfaces": ["eth0", "lo"],
        "writable": ["/"], "memory": None, "processes": 6, "gpu": True,
    }  # fmt: skip
    for name, value in bad.items():
        if name != "gpu":
            assert len(breaches(good | {name: value}, limits, gpu=False)) == 1, name
    assert breaches(good, limits, gpu=True) == ["there is no GPU"]
    assert len(breaches({}, limits, gpu=True)) == 7


def test_limits_this_machine_does_not_have_are_refused():
    """Before anything is built or started."""
    with pytest.raises(RequestError, match=r"A memory limit of .* is above the"):
        ContainerLauncher(replace(SMALL, memory_bytes=1 << 50))
    with pytest.raises(RequestError, match=r"9999 processors cannot be had: this machine has \d+"):
        ContainerLauncher(replace(SMALL, cpus=9999))


# ------------------------------------------------------------------------------------ in the box


def test_what_a_worker_sees(make_submission, engine, tmp_path):
    """An id nobody has, no capability, only lo, its limits, an environment without the user's."""
    launcher = ContainerLauncher(SMALL)
    found = told(
        make_submission,
        tmp_path / "out",
        "s = dict(l.split(':', 1) for l in open('/proc/self/status')); "
        "found = dict(uid=os.getuid(), caps=[s[c].strip() for c in ('CapEff', 'CapPrm', 'CapBnd')],"
        " new=s['NoNewPrivs'].strip(), net=os.listdir('/sys/class/net'), env=dict(os.environ),"
        " files=resource.getrlimit(resource.RLIMIT_NOFILE), cwd=os.getcwd(),"
        " tmp=__import__('tempfile').gettempdir(), work=os.statvfs('/work').f_blocks *"
        " os.statvfs('/work').f_frsize, training=os.path.exists('/training'),"
        " places=[str(task.working_dir), __file__], root=os.listdir('/'))",
        launcher=launcher,
    )
    assert found["uid"] == 10001
    assert set(found["caps"]) == {"0" * 16}
    assert (found["new"], found["net"]) == ("1", ["lo"])
    assert found["files"] == [4096, 4096]
    assert found["places"] == ["/work", "/submission/generate.py"]
    assert (found["cwd"], found["tmp"], found["training"]) == ("/work", "/work/tmp", False)
    assert found["work"] == 64 << 20
    record = launcher.record()
    assert record.limits.disk_bytes == 64 << 20
    assert set(record.environment) <= set(found["env"])
    assert not [key for key in found["env"] if "TOKEN" in key or "SECRET" in key]
    assert record.launcher == "container"
    assert record.engine == f"{engine.name} {engine.version}"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", record.image)
    assert "--network=none" in record.sandbox
    assert not [line for line in record.sandbox if str(tmp_path) in line]


def test_training_images_are_there_when_asked_for_and_cannot_be_written(
    make_submission, engine, tmp_path
):
    """All of them, for reading only, and nothing else of the data set."""
    training = load_split(SPEC, "train")
    found = told(
        make_submission,
        tmp_path / "out",
        "data = task.load_training_data(); found = dict(n=len(data), total=int(data.images.sum()),"
        " write=os.access(task.training_data, os.W_OK), where=str(task.training_data),"
        " near=sorted(os.listdir(task.training_data)))",
        training_data=training.folder,
        settings={"needs_training_data": "true"},
    )
    assert found == {
        "n": len(training.data),
        "total": int(training.data.images.sum()),
        "write": False,
        "where": "/training",
        "near": ["images.npy", "labels.npy", "split.json"],
    }


def test_a_run_in_a_container_is_the_run_of_a_process(make_submission, engine, tmp_path):
    """The same submission and seed: the same images."""
    sampled = race(
        make_submission(HONEST),
        tmp_path / "a",
        30,
        max_images=100,
        launcher=ContainerLauncher(SMALL),
    )
    assert (sampled.log.stop, len(sampled.data)) == ("images", 100)
    other = race(make_submission(HONEST, "other"), tmp_path / "b", 30, max_images=100)
    assert (sampled.data.images == other.data.images).all()
    assert containers(engine) == []


def test_memory_is_limited_by_the_kernel(make_submission, engine, tmp_path):
    """A worker that takes more than it may is killed, and the message says of what."""
    code = HONEST.replace("        pass\n", "        self.all = bytearray(b'x') * (2 << 30)\n")
    with pytest.raises(SamplingError, match=r"of memory(\?|, 1,024 MiB are allowed)"):
        race(make_submission(code), tmp_path / "out", 30, launcher=ContainerLauncher(SMALL))
    assert containers(engine) == []


def test_an_engine_that_fails_to_start_is_told(make_submission, engine, tmp_path):
    """What the engine says of an option this machine cannot give it."""
    launcher = ContainerLauncher(SMALL)
    submission = make_submission(HONEST)
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    with pytest.raises(RequestError, match=r"cannot give a GPU to a container: .*\n.*--device cpu"):
        launcher.prepare(submission, "cuda")


def test_a_box_that_is_open_is_not_used(make_submission, engine, tmp_path, monkeypatch):
    """Should an engine not do what it is told, the look from inside says so."""
    from ddchallenge.sampling.launchers import container

    def careless(*arguments, **settings):
        dropped = ("--cap-drop", "--user", "--memory", "--memory-swap")
        kept = [o for o in box_options(*arguments, **settings) if o[0] not in dropped]
        return (*kept, ("--user", "0:0"))

    monkeypatch.setattr(container, "box_options", careless)
    with pytest.raises(RunError, match="not closed: the worker would be root") as problem:
        ContainerLauncher(SMALL).prepare(make_submission(HONEST), "cpu")
    assert "could gain privileges" in str(problem.value)
    assert "the limit of memory is" in str(problem.value)


# ---------------------------------------------------------------------------------------- the end

DEAF = """
import ctypes, os, signal, time
import numpy as np
class G:
    def setup(self, task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(15, b"deaf-in-a-box", 0, 0, 0)
        for _ in range(2):
            if os.fork() == 0:
                time.sleep(600)
    def generate(self, labels, seed):
        time.sleep(600)
"""


def test_nothing_is_left_of_a_container(make_submission, engine, tmp_path):
    """Deaf processes: there during the run; afterwards no process, no group, no container."""
    seen: set[int] = set()
    groups: list[ControlGroup | None] = []

    def look(status):
        for pid in living("deaf-in-a-box") - seen:
            seen.add(pid)
            groups.append(ControlGroup.of(pid))

    with pytest.raises(SamplingError, match="the first batch had not come"):
        race(make_submission(DEAF), tmp_path / "out", 3, on_status=look,
             launcher=ContainerLauncher(SMALL))  # fmt: skip
    assert len(seen) == 3
    assert not living("deaf-in-a-box")
    assert not [group for group in groups if group is not None and group.processes()]
    assert containers(engine) == []


def test_no_container_outlives_a_killed_supervisor(make_submission, engine, tmp_path):
    """kill -9 in mid-run: worker, container, client and remover go within seconds."""
    submission = make_submission(DEAF)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_container import SMALL, ContainerLauncher, race\n"
        "from ddchallenge.generator import read_submission\n"
        "race(read_submission(Path(sys.argv[2])), Path(sys.argv[3]), 60, "
        "launcher=ContainerLauncher(SMALL))\n"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(TESTS), str(submission.folder), str(tmp_path / "out")]
    )
    until = time.monotonic() + 60
    while len(living("deaf-in-a-box")) < 3:
        assert time.monotonic() < until
        assert supervisor.poll() is None
        time.sleep(0.05)
    (name,) = containers(engine, supervisor.pid)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    until = time.monotonic() + 20
    while living("deaf-in-a-box") or containers(engine, supervisor.pid) or mentioning(name):
        assert time.monotonic() < until, (living("deaf-in-a-box"), mentioning(name))
        time.sleep(0.1)


def mentioning(name: str) -> list[str]:
    """The command lines of living processes that name a container."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if name in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def test_a_stop_while_the_container_is_made_leaves_none(make_submission, engine, tmp_path):
    """A budget shorter than the start of a container."""
    with pytest.raises(SamplingError, match="the worker had not started"):
        race(make_submission(HONEST), tmp_path / "out", 0.05, launcher=ContainerLauncher(SMALL))
    until = time.monotonic() + 10
    while containers(engine):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_an_engine_is_found_by_its_name(engine):
    """What --engine says."""
    assert find_engine(engine.name) == engine


def test_from_the_command_line_to_a_score(make_submission, engine, tmp_path, monkeypatch):
    """The main job in a container: sampled, written, scored; the manifest says in which box."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", "from ddchallenge.cli import main; main()", "run"]
    options = {
        "--track": "generative", "--dataset": "digits", "--launcher": "container",
        "--memory": "2g", "--epochs": "2", "--seeds": "1", "--out": "out",
    }  # fmt: skip
    command += [word for pair in options.items() for word in pair]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Building the image of gaussian" in done.stderr
    manifest = json.loads((tmp_path / "out/bundle/manifest.json").read_text())
    assert manifest["images"] == 100
    assert manifest["launch"]["launcher"] == "container"
    assert manifest["launch"]["image"].startswith("sha256:")
    assert manifest["launch"]["limits"]["memory_bytes"] == 2 << 30
    assert {"digest", "training_digest", "weights_digest", "submission"} <= manifest.keys()
    assert json.loads(done.stdout)
    listed = engine.read("images", "--quiet", "--filter", "label=ddchallenge.submission=true") or ""
    ours = manifest["launch"]["image"].removeprefix("sha256:")
    assert any(ours.startswith(identity) for identity in listed.split())
    engine.ask("rmi", "--force", ours)


def test_a_container_ends_though_everybody_is_killed(
    make_submission, engine, tmp_path, monkeypatch
):
    """Remover and client gone: after the budget and its slack podman itself ends it."""
    if not engine.ends_late:
        pytest.skip("this engine's run takes no --timeout")
    monkeypatch.setattr(container, "SLACK_SECONDS", 1.0)
    launcher = ContainerLauncher(SMALL)
    submission = make_submission(HONEST)
    launcher.prepare(submission, "cpu")
    places = Places(
        submission=submission.folder, working_dir=tmp_path, training_data=None, seconds=2.0
    )
    worker = launcher.start(places)
    try:
        until = time.monotonic() + 30
        while not running(engine, worker):
            assert time.monotonic() < until
            time.sleep(0.1)
        worker._remover.kill()
        worker._client.kill()
        while running(engine, worker):
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        worker.stop(lambda: None)
        worker.close()


def running(engine, worker) -> bool:
    return bool(engine.read("ps", "--quiet", "--filter", f"name=^{worker._name}$"))


def test_more_disk_than_is_free_is_refused():
    """Where somebody asked for it."""
    done = subprocess.run(
        [sys.executable, "-c", "from ddchallenge.cli import main; main()", "sample",
         "--dataset", "digits", "--submission", "gaussian", "--disk", "900t"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "A disk limit of 921,600.0 GiB is above" in done.stderr


def test_an_engine_nobody_knows_is_refused():
    """With the names that are known; and --engine without containers says where it belongs."""
    for options, message in (
        (["--launcher", "container", "--engine", "dokcer"], "Did you mean 'docker'?"),
        (["--engine", "podman"], "--engine goes with --launcher container"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from ddchallenge.cli import main; main()", "sample",
             "--dataset", "digits", *options],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert message in done.stderr
