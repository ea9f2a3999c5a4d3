"""Submissions that reach for other processes, leave word for their next run, or hide their code."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from racing import race

from ddchallenge.sampling.launchers import default_limits, sandbox, seccomp
from ddchallenge.sampling.launchers.process import ProcessLauncher

needs_landlock = pytest.mark.skipif(
    (sandbox.landlock_abi() or 0) < 6, reason="this kernel has no Landlock of ABI 6"
)
needs_seccomp = pytest.mark.skipif(
    not seccomp.seccomp_known(), reason="this machine's system calls are not known"
)
needs_namespaces = pytest.mark.skipif(
    not sandbox.shared_memory_can_be_private(), reason="no mount namespaces for us here"
)


def said(out: Path) -> str:
    return (out / "worker.log").read_text()


@needs_seccomp
def test_no_knob_of_another_process_turns(cheat, tmp_path):
    """Limits, priorities, processors and memory of guardian and supervisor; no user namespace."""
    sampled = race(cheat("disturbs"), tmp_path / "out", 30, max_images=16)
    text = said(tmp_path / "out")
    assert sampled.data.images.max() == 0, text
    for knob in ("limit", "priority", "policy", "memory"):
        assert f"{knob} of the guardian: refused" in text
        assert f"{knob} of the supervisor: refused" in text


@needs_landlock
@needs_seccomp
@pytest.mark.parametrize("private", [pytest.param(True, marks=needs_namespaces), False])
def test_a_run_finds_nothing_of_the_one_before(cheat, tmp_path, monkeypatch, private):
    """Shared memory, System V and POSIX IPC, keys: refused, or gone with the run."""
    monkeypatch.setattr(sandbox, "shared_memory_can_be_private", lambda: private)
    entry = cheat("remembers")
    try:
        for out in (tmp_path / "first", tmp_path / "second"):
            launcher = ProcessLauncher()
            sampled = race(entry, out, 30, max_images=16, launcher=launcher)
            assert sampled.data.images.max() == 0, said(out)
            assert "left by" not in said(out)
            assert ("left in /dev/shm" in said(out)) == private
            assert not Path("/dev/shm/ddchallenge-cheat").exists()
            cut = "\n".join(launcher.record().sandbox)
            assert ("its own /dev/shm" in cut) == private
            assert ("not /dev/shm" in cut) != private
    finally:
        Path("/dev/shm/ddchallenge-cheat").unlink(missing_ok=True)


@needs_namespaces
def test_what_lies_in_shared_memory_is_memory(cheat, tmp_path):
    """A file in a /dev/shm that only the run sees counts as any memory."""
    launcher = ProcessLauncher(replace(default_limits(), memory_bytes=500 << 20))
    sampled = race(cheat("fills_shared_memory"), tmp_path / "out", 30, launcher=launcher)
    assert sampled.log.stop == "limit", said(tmp_path / "out")
    assert "of memory, 500 MiB are allowed" in sampled.log.stop_detail
    assert sampled.log.images_sampled == 32


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_who_is_not_root_has_shared_memory_too():
    """By a user namespace, in which a user is who they were."""
    code = """if True:
        import os, sys
        sys.path.insert(0, os.getcwd())
        import sandbox
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        sandbox.prctl(4, 1)  # dumpable, as after the start of a program
        sandbox.private_shared_memory(1 << 20)
        open("/dev/shm/cheat", "w").close()
        print(os.getuid(), os.getgid(), os.listdir("/dev/shm"))
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(sandbox.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if "PermissionError" in done.stderr or "No space left" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.stdout.strip() == "65534 65534 ['cheat']", done.stderr


@needs_landlock
def test_compiled_code_does_not_run_in_the_place_of_its_source(make_submission, tmp_path):
    """A ``__pycache__`` that says it need not be checked is not even read."""
    code = """
    import helper
    import numpy as np
    class G:
        def setup(self, task): ...
        def generate(self, labels, seed):
            return np.full((len(labels), 3, 8, 8), helper.VALUE, np.uint8)
    """
    entry = make_submission(code)
    source = entry.folder / "helper.py"
    source.write_text("VALUE = 200")
    compiled = py_compile.compile(
        str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    assert Path(compiled).parent.name == "__pycache__"
    source.write_text("VALUE = 1")
    sampled = race(entry, tmp_path / "out", 30, max_images=16)
    assert sampled.data.images.max() == 1
