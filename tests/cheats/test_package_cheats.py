"""Packages that try: links, paths that leave their folder, bombs, hidden and doubled members.

Each test shows that the archive is what it claims to be (tarfile reads it so), that it is refused
with a sentence of its own, and that nothing of it is on the disk.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from archives import archive, list_member, listing, member, members, package_of

from ddchallenge.errors import PackageError, SubmissionError
from ddchallenge.generator import find_submission
from ddchallenge.packages import check_package, write_package

CONFIG = b'name = "entry"\nauthors = ["x"]\nentry_point = "generate:G"\ndatasets = ["digits"]\n'
FILES = {"generate.py": b"class G: ...\n", "submission.toml": CONFIG}
MARK = "cheated"


@pytest.fixture
def refused(tmp_path):
    """Checks an archive in a folder of its own, which has to be as it was; gives the message."""

    def check(content: bytes, **options: object) -> str:
        folder = tmp_path / "a" / "b" / "c"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "p.tar.gz"
        path.write_bytes(content)
        with pytest.raises(PackageError) as caught:
            check_package(path, **options)
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
        assert not Path("/tmp", MARK).exists()
        return str(caught.value)

    return check


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"../../{MARK}.py", "has .. in it"),
        (f"nets/../../{MARK}.py", "has .. in it"),
        (f"/tmp/{MARK}", "is an absolute path"),
        (f"./{MARK}.py", "no plain relative path"),
        (f"nets//{MARK}.py", "no plain relative path"),
        ("..\\evil.py", "a backslash"),
        ("a\u202egnp.py", "expected printable text"),
        ("/".join(["d"] * 20) + "/x.py", "more than 8 folders deep"),
        ("n" * 200 + ".py", "has a name of more than"),
        ("__pycache__/generate.cpython-311.pyc", "no part of a submission's digest"),
        (".git/hooks/post-checkout", "no part of a submission's digest"),
        ("results/digits.eccv2024.json", "no part of a submission's digest"),
        ("Generate.py", "one file where case"),
        ("generate.py/x.py", "is a file and a folder"),
    ],
)
def test_paths_in_the_list(refused, path, message):
    document = listing(FILES | {path: b"x"})
    content = archive(list_member(document), *members(FILES))
    assert message in refused(content)


def test_control_characters_reach_no_terminal(refused):
    said = refused(archive(list_member(listing(FILES | {"a\x1b[2J.py": b""}))))
    assert "\x1b" not in said
    said = refused(archive(list_member(listing(FILES)), member("submission/\x1b[2J", b"x")))
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (member("submission/generate.py", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
         "a symbolic link"),
        (member("submission/generate.py", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
         "a hard link"),
        (member("submission/generate.py", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
         "a character device"),
        (member("submission/generate.py", type=tarfile.BLKTYPE), "a block device"),
        (member("submission/generate.py", type=tarfile.FIFOTYPE), "a pipe"),
        (member("submission/generate.py", type=tarfile.DIRTYPE), "a folder"),
        (member("submission/generate.py", type=tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (member("submission/../../cheated.py", b"x"), "which has .. in it"),
        (member("/tmp/cheated", b"x"), "which is an absolute path"),
        (member("submission/submission.toml", CONFIG), "where generate.py should come"),
        (member("submission/generate.py", b"x" * 10_000), "another size"),
        (member("submission/generate.py", FILES["generate.py"], mode=0o4755), "owner or mode"),
        (member("submission/generate.py", FILES["generate.py"], uid=1000), "time, owner or mode"),
        (member("submission/generate.py", pax_headers={"path": "/tmp/cheated"},
                tar_format=tarfile.PAX_FORMAT), "an extended header (pax)"),
        (member("submission/" + 200 * "n", tar_format=tarfile.GNU_FORMAT),
         "an extended header (GNU)"),
        (b"\x01" * 512, "is damaged: no file begins"),
    ],
)  # fmt: skip
def test_members_that_are_not_the_ones_listed(refused, hostile, message):
    content = archive(list_member(listing(FILES)), hostile, *members(FILES))
    assert message in refused(content)


def test_a_link_before_the_list(refused):
    """The classic: a link to elsewhere, then a file through it."""
    content = archive(
        member("submission", type=tarfile.SYMTYPE, linkname="/tmp"),
        member("submission/cheated", b"x"),
    )
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        assert opened.getnames() == ["submission", "submission/cheated"]
    assert "'submission' (a symbolic link)" in refused(content)


def test_doubles(refused):
    document = listing(FILES)
    document["files"] = [document["files"][0], *document["files"]]
    assert "'generate.py' is there twice" in refused(archive(list_member(document)))
    first, second = members(FILES)
    content = archive(list_member(listing(FILES)), first, first, second)
    assert "'submission/generate.py' a second time" in refused(content)
    twice = json.dumps(listing(FILES)).replace('"format"', '"format": 1, "format"')
    assert "is there twice" in refused(archive(member("package.json", twice.encode())))


def test_what_is_hidden_behind_and_between(refused):
    assert "goes on after its end" in refused(package_of(FILES) + gzip.compress(b"more"))
    assert "goes on after its end" in refused(package_of(FILES) + b"more")
    content = archive(list_member(listing(FILES)), *members(FILES), end=bytes(1024) + b"more")
    assert "goes on after its end" in refused(content)
    first, second = members(FILES)
    content = archive(list_member(listing(FILES)), first[:-1] + b"x", second)
    assert "hidden between its files" in refused(content)


def bomb(gigabytes: int) -> bytes:
    """A gzip file of so many GB of zeros, a thousandth as long."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as file:
        for _ in range(gigabytes * 10):
            file.write(bytes(100_000_000))
    return out.getvalue()


def big_header(size: int, path: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.type, info.mode = size, kind, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def bombs() -> dict[str, bytes]:
    tail = bomb(1)
    document = listing(FILES)
    document["files"][0]["size"] = 900_000_000
    heads = {
        # Python's tarfile reads the whole extended header into memory.
        "pax": big_header(900_000_000, "x", tarfile.XHDTYPE),
        "longname": big_header(900_000_000, "x", tarfile.GNUTYPE_LONGNAME),
        "list": big_header(900_000_000, "package.json"),
        "member": list_member(document),
        "within": list_member(listing(FILES)) + big_header(900_000_000, "submission/generate.py"),
        "end": list_member(listing(FILES)) + b"".join(members(FILES)) + bytes(1024),
    }
    return {name: gzip.compress(head) + tail for name, head in heads.items()} | {
        "zeros": tail,
        "end in one stream": gzip.compress(heads["end"] + bytes(300_000_000)),
    }


def test_bombs_take_no_memory(tmp_path):
    """A gigabyte out of one megabyte, refused by a process that may have 300 MB more."""
    code = """
import resource, sys
from pathlib import Path
from ddchallenge.errors import PackageError
from ddchallenge.packages import check_package
import ddchallenge.augment
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, used + 300_000_000))
for name in sys.argv[1:]:
    try:
        check_package(Path(name))
        print("taken", name)
    except PackageError as error:
        print(str(error).splitlines()[0])
"""
    paths = []
    for name, content in bombs().items():
        path = tmp_path / f"{name.replace(' ', '-')}.tar.gz"
        path.write_bytes(content)
        assert len(content) < 3_000_000
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(paths)
    assert not [line for line in said if line.startswith("taken")]
    assert len(list(tmp_path.iterdir())) == len(paths)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 300_000_000  # this process is as it was


def test_more_than_was_to_be_read(refused):
    assert "at most 50 were to be read" in refused(package_of(FILES), max_total_bytes=50)
    many = {f"f{n}.py": b"" for n in range(1001)}
    assert "1,003 files" in refused(archive(list_member(listing(FILES | many))))
    document = listing(FILES)
    document["files"][0]["size"] = -1
    assert "cannot have -1 bytes" in refused(archive(list_member(document)))
    deep = b'{"format": ' + 20_000 * b"[" + 20_000 * b"]" + b"}"
    assert "package.json" in refused(archive(member("package.json", deep)))


@pytest.mark.parametrize("where", ["linked.py", "nets"])
def test_a_link_in_the_folder_is_packaged_by_no_option(make_submission, tmp_path, where):
    """To a file and to a folder outside, named or not, found by path."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_text("x")
    entry = make_submission("class G: ...")
    (entry.folder / where).symlink_to(outside if where == "nets" else outside / "secret.py")
    for allow in ([], [where]):
        with pytest.raises(SubmissionError, match=f"{where} is a symbolic link"):
            write_package(find_submission(str(entry.folder)), tmp_path / "e.tar.gz", allow=allow)
    assert not (tmp_path / "e.tar.gz").exists()
