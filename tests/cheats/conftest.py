"""The cheating submissions, and the boxes they are put into.

Each file in ``entries`` is the ``generate.py`` of a submission. Tests take the fixture ``box``, a
function from limits to a launcher: once for processes and once for containers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ddchallenge.sampling.launchers import default_limits
from ddchallenge.sampling.launchers.container import ContainerLauncher
from ddchallenge.sampling.launchers.process import ProcessLauncher

ENTRIES = Path(__file__).parent / "entries"


def _process(**limits):
    return ProcessLauncher(replace(default_limits(), **limits))


def _container(**limits):
    # No test needs more than this, and none may take all that the machine has.
    return ContainerLauncher(replace(default_limits(), **{"memory_bytes": 2 << 30} | limits))


BOXES = {"process": _process, "container": _container}


@pytest.fixture(params=BOXES)
def box(request):
    """Makes a launcher with limits other than the default ones."""
    if request.param == "container":
        request.getfixturevalue("engine")
    return BOXES[request.param]


@pytest.fixture
def cheat(make_submission):
    """A submission whose code is one of the files in ``entries``."""

    def make(name, **settings):
        code = (ENTRIES / f"{name}.py").read_text()
        return make_submission(code, name.replace("_", "-"), **settings)

    return make
