"""Files and folders that appear whole or not at all."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest

from ddchallenge.atomic import atomic_file, atomic_folder
from ddchallenge.errors import OutputError, StorageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def half_written(context, error):
    """Write something inside ``context``, then fail."""
    with context as temporary:
        place = temporary / "part" if temporary.is_dir() else temporary
        place.write_text("half")
        raise error


@contextmanager
def small_files(limit):
    """No file of this process may grow past ``limit`` bytes: the kernel refuses, as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_appears_only_when_whole(tmp_path):
    """While it is written the target is the old one; folders above are made."""
    target = tmp_path / "a" / "b.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    with atomic_file(target) as temporary:
        temporary.write_text("two")
        assert target.read_text() == "one"
    assert target.read_text() == "two"
    assert names(target.parent) == ["b.txt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    """Any exception, Ctrl-C included, leaves the target as it was and no temporary."""
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        half_written(atomic_file(target), KeyboardInterrupt())
    with pytest.raises(ZeroDivisionError):
        half_written(atomic_folder(tmp_path / "y"), ZeroDivisionError())
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_what_exists_is_not_touched(tmp_path):
    """A folder, and a file unless told, is never written over, be it a dangling link."""
    (tmp_path / "x").write_text("old")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("x", "link", ""):
        with pytest.raises(OutputError, match="exists already"), atomic_folder(tmp_path / name):
            raise AssertionError("not reached")
    with pytest.raises(OutputError), atomic_file(tmp_path / "x", overwrite=False):
        raise AssertionError("not reached")
    assert (tmp_path / "x").read_text() == "old"


def test_a_folder_made_meanwhile_stays(tmp_path):
    """Where something took the name during the write, that something is kept."""
    writing = atomic_folder(tmp_path / "x")
    (writing.__enter__() / "mine").write_text("")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "theirs").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        writing.__exit__(None, None, None)
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["theirs"]


def test_no_room_is_a_storage_error(tmp_path):
    """The kernel's refusal in mid-write becomes a StorageError and leaves nothing behind."""
    with (
        small_files(10_000),
        pytest.raises(StorageError, match=r"no room.*\n.*free some space"),
        atomic_folder(tmp_path / "x") as temporary,
    ):
        (temporary / "big").write_bytes(b"x" * 20_000)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StorageError),
        (errno.EDQUOT, StorageError),
        (errno.EIO, StorageError),
        (errno.EROFS, OutputError),
        (errno.EACCES, OutputError),
    ],
)
def test_what_the_system_says_becomes_the_right_error(tmp_path, code, kind):
    """Full, failing and forbidden places are told apart, with the system's own words."""
    with pytest.raises(kind) as error, atomic_file(tmp_path / "x"):
        raise OSError(code, os.strerror(code))
    assert os.strerror(code) in str(error.value)
    assert str(tmp_path / "x") in str(error.value)


def test_a_place_that_is_no_folder_is_an_output_error(tmp_path):
    """Writing below a file is refused with the path that is in the way."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"file/x cannot be written \(.*file: "),
        atomic_file(tmp_path / "file" / "x"),
    ):
        raise AssertionError("not reached")
