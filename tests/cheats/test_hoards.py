"""Submissions that take, or leave behind, what a plain look at their folder does not show."""

from __future__ import annotations

import os
import sys

import pytest
from racing import order_for, race

from ddchallenge.pipeline import sample_bundle
from ddchallenge.sampling.launchers import default_limits
from ddchallenge.sampling.launchers.process import ProcessLauncher
from ddchallenge.sampling.launchers.watch import folder_bytes, folder_problem
from ddchallenge.sampling.removal import remove_folder

linux = pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")


def boxed(**limits):
    from dataclasses import replace

    return ProcessLauncher(replace(default_limits(), **limits))


def nest(folder, depth):
    place = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=place)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    return place


@linux
def test_a_deep_tree_costs_neither_the_bundle_nor_the_folder(cheat, tmp_path):
    """However deep it dug before its last image, the bundle is written and its folder gone."""
    entry = cheat("hoards", options='what = "deep"\nrest = 0')
    order = order_for(entry, 30, max_images=64, launcher=boxed())
    bundle = sample_bundle(order, None, tmp_path / "out")
    assert len(bundle.data) >= 32
    assert (tmp_path / "out/bundle/images.safetensors").is_file()
    assert not (tmp_path / "out/work").exists()


@linux
@pytest.mark.parametrize(
    ("what", "limits", "said"),
    [
        ("deep", {"disk_bytes": 40 << 20}, "cannot be measured"),
        ("unlinked", {"disk_bytes": 40 << 20}, "of files, 40 MiB are allowed"),
        ("memory", {"memory_bytes": 500 << 20}, "of memory, 500 MiB are allowed"),
    ],
)
def test_what_no_folder_shows_is_counted(cheat, tmp_path, what, limits, said):
    """Deep folders, unlinked files and memory files end the run as plain ones do."""
    entry = cheat("hoards", options=f'what = "{what}"\nrest = 600')
    log = race(entry, tmp_path / "out", 30, launcher=boxed(**limits)).log
    assert log.stop == "limit"
    assert said in log.stop_detail
    assert log.images_sampled == 32
    assert not (tmp_path / "out/work").exists()


def test_every_tree_is_removed_and_nothing_beside_it(tmp_path):
    """Deep, wide, locked, with links that lead out; what they lead to stays."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    top = tmp_path / "top"
    for name in ("a/b/c", "a/d", "e"):
        (top / name).mkdir(parents=True)
    (top / "a/b/out").symlink_to(tmp_path / "mine")
    (top / "file-out").symlink_to(tmp_path / "mine/file")
    os.mkfifo(top / "e/pipe")
    os.close(nest(top / "e", 1500))
    (top / "a/d").chmod(0)
    (top / "a").chmod(0o500)
    assert remove_folder(top)
    assert not top.exists()
    assert (tmp_path / "mine/file").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert not remove_folder(tmp_path / "link")
    assert (tmp_path / "mine/file").exists()


def test_a_path_too_long_for_the_kernel_is_measured(tmp_path):
    """Files at the end of paths of 20,000 characters count; deeper ones are not allowed at all."""
    place = nest(tmp_path, 100)
    file = os.open("big", os.O_CREAT | os.O_WRONLY, dir_fd=place)
    os.write(file, os.urandom(1 << 20))
    os.fsync(file)
    assert folder_bytes(str(tmp_path)) >= 1 << 20
    assert folder_problem(str(tmp_path), 4 << 30) is None
    assert "of files" in folder_problem(str(tmp_path), 1 << 19)
    os.close(nest(f"/proc/self/fd/{place}", 150))
    assert "cannot be measured" in folder_problem(str(tmp_path), 4 << 30)
    os.close(file)
    os.close(place)
    assert remove_folder(tmp_path)
    assert folder_bytes(str(tmp_path)) == 0
