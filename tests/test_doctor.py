"""What doctor finds, on this machine and on broken ones; that no probe can end or hold it."""

from __future__ import annotations

import io
import json
import os
import stat
import time
from pathlib import Path
from threading import Event

import psutil
import pytest
from rich.console import Console

from ddchallenge import cli, doctor
from ddchallenge.doctor import Diagnosis, Finding, diagnose, hardware, software
from ddchallenge.doctor.findings import Probe, ask, look_around
from ddchallenge.jsonio import from_json, to_json
from ddchallenge.report.tables import diagnosis_lines, diagnosis_tables


def program(folder: Path, name: str, script: str) -> None:
    """A program of that name; PATH has to name the folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A PATH with nothing in it but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def test_this_machine_can_run_digits():
    """Every key a command needs is there, and the JSON is the record."""
    found = diagnose()
    assert found.able, [finding for finding in found.findings if finding.state != "ok"]
    assert found.commands[0].command == "run --dataset digits"
    keys = {finding.key for finding in found.findings}
    assert len(keys) == len(found.findings)
    assert {key for needed in doctor._needs().values() for key in needed} <= keys
    by_key = {finding.key: finding for finding in found.findings}
    assert by_key["data.digits"].amount == 1797
    assert "torch 2" in by_key["versions"].text
    assert by_key["cpu"].amount == len(os.sched_getaffinity(0))
    assert from_json(Diagnosis, json.loads(json.dumps(to_json(found))), "it") == found


def test_what_is_missing_is_said_for_the_commands_that_need_it(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("DDCHALLENGE_DATA", str(tmp_path / "none"))
    monkeypatch.delenv("CXX", raising=False)
    found = diagnose()
    ready = {entry.command: entry for entry in found.commands}
    assert ready["run --dataset digits"].ready
    assert "no podman or docker. Install" in ready["run --launcher container"].why
    assert "Install" in ready["score --numerics fast"].why
    assert "`ddchallenge data fetch cifar100`" in ready["run --dataset cifar100"].why
    assert "Install git" in ready["reproduce"].why
    assert not any(entry.ready for entry in found.commands if entry.why)


def test_a_cache_that_cannot_be_written_keeps_everything_from_running(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "file" / "cache"))
    found = diagnose()
    assert not found.able
    assert "Point DDCHALLENGE_CACHE" in found.commands[0].why
    assert not any(entry.ready for entry in found.commands)
    assert all("run --dataset digits needs" in entry.why for entry in found.commands[1:])


def test_a_place_is_looked_at_without_being_made(tmp_path, monkeypatch):
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "a" / "b"))
    assert only(doctor.find_cache()).state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_enough(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    found = only(doctor.find_here())
    assert (found.state, found.amount) == ("missing", 10**6)
    assert "or free some" in found.advice


def test_probes_that_raise_or_hang_are_lines():
    def raises():
        raise RuntimeError("first\nlast \x1b[31mline")

    began = time.monotonic()
    probes = [
        Probe("a", "A", raises),
        Probe("b", "B", Event().wait, 0.2),
        Probe("c", "C", lambda: [Finding(key="c", title="C", text="good")]),
        Probe("d", "D", lambda: None),  # type: ignore[arg-type,return-value]
    ]
    found = {finding.key: finding for finding in look_around(probes)}
    assert time.monotonic() - began < 30
    assert [found[key].state for key in "abcd"] == ["unknown", "unknown", "ok", "unknown"]
    assert found["a"].text == "last ?[31mline"
    assert found["b"].text == "no answer within 0 s"


def test_a_program_that_hangs_goes_with_what_it_started(bare):
    program(bare, "slow", "/bin/sleep 4711 & echo $! > $0.pid; wait")
    status, _, err = ask("slow", seconds=1)
    assert (status, err) == (124, "slow gave no answer within 1 s")
    child = int((bare / "slow.pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break  # killed; whoever adopts orphans here has not looked yet
        time.sleep(0.01)
    else:
        assert not psutil.pid_exists(child)
    assert ask("absent", seconds=1)[0] == 127


@pytest.mark.parametrize(
    ("scripts", "state", "text"),
    [
        ({"podman": "echo 4.9.9"}, "ok", "podman 4.9.9"),
        ({"podman": "echo broken >&2; exit 125", "docker": "echo 27.0"}, "ok", "docker 27.0"),
        ({"docker": "echo 'permission denied on the socket' >&2; exit 1"}, "missing",
         "docker does not answer (permission denied on the socket)"),
        ({"docker": "exit 0"}, "missing", "docker does not answer"),  # a client without a service
    ],
)  # fmt: skip
def test_engines(bare, scripts, state, text):
    for name, script in scripts.items():
        program(bare, name, script)
    found = only(software.find_engine())
    assert (found.state, found.text[: len(text)]) == (state, text)
    assert state == "ok" or "permission to use it" in found.advice


def test_compilers(bare, monkeypatch):
    monkeypatch.setenv("CXX", "my-c++")
    assert only(software.find_compiler()).text == "there is no my-c++"
    program(bare, "my-c++", "echo 'no cc1plus' >&2; exit 1")
    found = only(software.find_compiler())
    assert (found.state, found.text) == ("missing", "my-c++ does not compile: no cc1plus")


def test_versions_below_the_bounds(monkeypatch):
    bounds = ["torch>=99.1", "ddchallenge-absent>=1", "numpy>=1.0", "ruff>=99; extra == 'dev'"]
    monkeypatch.setattr(software, "requires", lambda name: bounds)
    found = only(software.find_versions())
    assert found.state == "missing"
    assert "99.1 or later is needed; ddchallenge-absent is not installed" in found.text
    assert "numpy" not in found.text
    assert "ruff" not in found.text
    assert software._numbers("2.10.0+cu128") > software._numbers("2.9")


def answers(monkeypatch, torch: tuple[int, str, str], smi: tuple[int, str, str]) -> dict:
    monkeypatch.setattr(
        hardware, "ask", lambda *command, seconds: smi if command[0] == "nvidia-smi" else torch
    )
    return {finding.key: finding for finding in hardware.find_torch()}


def test_gpus(monkeypatch):
    """Two of them; one that only nvidia-smi sees; and a PyTorch that crashes when asked."""
    about = {"torch": "2.9", "cuda": "12.8", "cpu": "torch.float32", "said": []}
    gpus = [["NVIDIA A100", 80 << 30, "torch.bfloat16"], ["Tesla P4", 8 << 30, "torch.float32"]]
    smi = (0, "NVIDIA A100, 570.1\nTesla P4, 570.1\n", "")
    found = answers(monkeypatch, (0, json.dumps(about | {"gpus": gpus}), ""), smi)
    assert found["gpu"].text == (
        "NVIDIA A100, 80 GiB, bfloat16; Tesla P4, 8 GiB, float32; driver 570.1"
    )
    assert (found["gpu"].amount, found["gpu_memory"].amount) == (2, 8 << 30)
    assert found["bf16"].text.startswith("not in hardware")

    old = about | {"gpus": [], "said": ["CUDA initialization: The NVIDIA driver is too old"]}
    found = answers(monkeypatch, (0, json.dumps(old), ""), smi)
    assert "driver is too old" in found["gpu"].text
    assert "driver 570.1: install a PyTorch built for that driver" in found["gpu"].advice

    found = answers(monkeypatch, (-11, "", ""), (127, "", ""))
    assert (found["torch"].state, found["torch"].text) == ("missing", "it ended with status -11")


BROKEN = Diagnosis(
    able=False,
    findings=(
        Finding(key="a", title="A [bold]", text="x " * 90, state="missing", advice="Mend it"),
        Finding(key="b", title="B", text="no answer", state="unknown"),
    ),
    commands=(doctor.Readiness(command="run --dataset digits", ready=False, why="A [bold]: x."),),
)


def test_what_is_shown():
    """Eighty columns are enough, and nothing that was found is taken for markup."""
    console = Console(width=80, file=io.StringIO())
    for table in diagnosis_tables(BROKEN):
        console.print(table)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "A [bold]  missing" in shown
    assert diagnosis_lines(BROKEN)[1:] == [
        "unknown: B: no answer",
        "no: run --dataset digits: A [bold]: x.",
    ]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_command_ends_with_whether_digits_can_be_run(arguments, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["ddchallenge", "doctor", *arguments])
    for able in (True, False):
        found = BROKEN if not able else Diagnosis(able=True, findings=(), commands=())
        monkeypatch.setattr(doctor, "diagnose", lambda data_dir, found=found: found)
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        assert status == (0 if able else 1)
        out = capfd.readouterr().out
        if arguments:
            assert json.loads(out) == to_json(found)
        else:
            assert out.splitlines() == diagnosis_lines(found)
