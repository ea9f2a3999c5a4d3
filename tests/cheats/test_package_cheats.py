"""Packages that try: links, paths that leave their folder, bombs, hidden and doubled members.

Each test shows that the archive is what it claims to be (tarfile reads it so), that it is refused
with a sentence of its own, and that nothing of it is on the disk.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import tarfile
import zlib
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


BOMB = 600_000_000  # bytes that a member claims, and that follow


def bomb(head: bytes) -> bytes:
    """One gzip stream of ``head`` and as many zeros, under three MB; compressed once, repeated."""
    zeros, times = bytes(10_000_000), BOMB // 10_000_000

    def deflated(content: bytes) -> bytes:
        # A full flush ends at a byte and refers to nothing before, so the pieces can be joined.
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)

    checksum = zlib.crc32(head)
    for _ in range(times):
        checksum = zlib.crc32(zeros, checksum)
    stream = deflated(head) + times * deflated(zeros) + b"\x03\x00"  # an empty last block
    end = struct.pack("<II", checksum, (len(head) + BOMB) % 2**32)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + stream + end


def big_header(size: int, path: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.type, info.mode = size, kind, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def bombs() -> dict[str, tuple[bytes, str]]:
    """Heads that zeros follow, and what is said of them."""
    document = listing(FILES)
    document["files"][0]["size"] = BOMB
    right = list_member(listing(FILES))
    return {
        # Python's tarfile reads the whole extended header into memory.
        "pax": (big_header(BOMB, "x", tarfile.XHDTYPE), "an extended header (pax)"),
        "longname": (big_header(BOMB, "x", tarfile.GNUTYPE_LONGNAME), "an extended header (GNU)"),
        "list": (big_header(BOMB, "package.json"), "package.json has 600,000,000 bytes"),
        "zeros": (b"", "is not a tar archive inside"),
        "member": (
            list_member(document) + big_header(BOMB, "submission/generate.py"),
            "generate.py is not the file that the list names",
        ),
        "within": (right + big_header(BOMB, "submission/generate.py"), "another size"),
        "end": (right + b"".join(members(FILES)) + bytes(1024), "goes on after its end"),
    }


# Half of what the bombs make, on top of what the imports took.
LIMITED = """
import resource, sys, tarfile
from pathlib import Path
from ddchallenge.errors import PackageError
from ddchallenge.packages import check_package
import ddchallenge.augment
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, used + 300_000_000))
"""
CHECK = """
for name in sys.argv[1:]:
    try:
        check_package(Path(name))
        print("taken")
    except PackageError as error:
        print(str(error).splitlines()[0])
"""
BY_TARFILE = """
try:
    tarfile.open(sys.argv[1], "r|gz")
except MemoryError:
    print("no memory")
"""


def test_bombs_take_no_memory(tmp_path):
    """Refused by a process that may have half the memory; Python's own reader runs out of it."""

    def run(code: str, *paths: Path) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", LIMITED + code, *map(str, paths)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    paths, messages = [], []
    for name, (head, message) in bombs().items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(bomb(head))
        assert paths[-1].stat().st_size < 4_000_000
        messages.append(message)
    with gzip.open(tmp_path / "zeros") as whole:  # a proper file to its checksum
        assert sum(len(piece) for piece in iter(lambda: whole.read(1 << 20), b"")) == BOMB
    assert run(BY_TARFILE, tmp_path / "pax") == ["no memory"]
    said = run(CHECK, *paths)
    assert len(said) == len(messages)
    assert [line for line, message in zip(said, messages, strict=True) if message not in line] == []
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_chance_finds_nothing_else(tmp_path):
    """Flipped, cut and doubled pieces, of archive and file: refused, or no difference."""
    whole = package_of(FILES)
    path = tmp_path / "p.tar.gz"
    path.write_bytes(whole)
    right = check_package(path).contents
    chance = random.Random(0)
    taken = 0
    for number in range(1000):
        content = bytearray(gzip.decompress(whole) if number % 2 else whole)
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(content))
            piece = content[start : start + chance.choice([1, 1, 7, 512])]
            change = chance.choice(["flip", "cut", "double"])
            if change == "flip":
                content[start] = chance.randrange(256)
            elif change == "cut":
                del content[start : start + len(piece)]
            else:
                content[start:start] = piece
        path.write_bytes(gzip.compress(bytes(content), 1) if number % 2 else bytes(content))
        try:
            assert check_package(path).contents == right
            taken += 1
        except PackageError:
            pass
    assert taken < 50  # gzip's own header has a time and a system that say nothing


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
