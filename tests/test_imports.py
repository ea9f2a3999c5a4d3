"""Imports go one way: down the data flow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ddchallenge

PACKAGE = Path(ddchallenge.__file__).parent

# A module may import what stands before it, and anything in its own room.
ORDER = [
    "errors",
    "records",
    "atomic",
    "jsonio",
    "interrupts",
    "rules",
    "datasets",
    "environment",
    "reference_devices",
    "augment",
    "generator",
    "packages",
    "sampling",
    "bundle",
    "official",
    "class_order",
    "audit",
    "replay",
    "scoring",
    "calibration",
    "marks",
    "provenance",
    "leaderboard",
    "reproduce",
    "scaffold",
    "doctor",
    "report",
    "commanded",
    "pipeline",
    "cli",
]


def room(module: str) -> str:
    return module.split(".")[1]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    known = {name for name, _ in modules()}
    return {name for name in names if name in known and name != "ddchallenge"}


def test_every_module_has_its_place():
    """The order below names every room of the package, and no other."""
    rooms = {room(name) for name, _ in modules() if name != "ddchallenge"}
    assert rooms == set(ORDER)


def test_imports_go_down_the_data_flow():
    """No module imports one that comes later, inside functions neither."""
    wrong = [
        f"{name} imports {other}"
        for name, path in modules()
        if name != "ddchallenge"
        for other in imported(path)
        if ORDER.index(room(other)) > ORDER.index(room(name))
    ]
    assert wrong == []


def test_only_the_command_line_prints_or_exits():
    """print, sys.exit and os._exit stand in cli and in the main lines of child processes."""
    allowed = {
        "ddchallenge.cli",
        "ddchallenge.sampling.worker",
        "ddchallenge.sampling.launchers.guardian",
        "ddchallenge.augment",
    }
    for name, path in modules():
        if name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.exit", "os._exit", "exit"), f"{name}: {called}"


def test_help_loads_nothing_heavy():
    """--help answers without numpy, torch and the rest, which is what keeps it fast."""
    code = (
        "import sys; sys.argv = ['ddchallenge', '--help']\n"
        "from ddchallenge.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'torch', 'PIL', 'sklearn', 'scipy', 'matplotlib', 'httpx', 'rich'}\n"
        "heavy |= {'albumentations'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ten minutes" in done.stdout
