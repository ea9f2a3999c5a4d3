"""Downloads against a local server that misbehaves, and what is done with the files."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import random
import socket
import stat
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from fake_data import (
    CIFAR,
    TINY,
    md5_of,
    official_files,
    write_archive,
    write_class_folders,
    write_tiny,
    zip_folder,
)

from ddchallenge import datasets
from ddchallenge.datasets import acquire, cifar100, unpack
from ddchallenge.datasets.acquire import FetchProgress
from ddchallenge.datasets.download import download
from ddchallenge.datasets.unpack import unpack_zip
from ddchallenge.errors import DataError, DownloadError, OutputError, StorageError
from ddchallenge.records import Source

CONTENT = random.Random(5).randbytes(300_000)


class Server(ThreadingHTTPServer):
    """Answers one request after the other with ``answers``, the last one for good."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.answers = [whole]
        self.ranges: list[str | None] = []

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is part of these tests."""

    def source(self, **changes) -> Source:
        source = Source(
            url=f"http://127.0.0.1:{self.server_port}/file.bin",
            filename="file.bin",
            sha256=hashlib.sha256(self.content).hexdigest(),
            size=len(self.content),
        )
        return replace(source, **changes)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def log_message(self, *args) -> None:
        pass

    def begin(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    @property
    def offset(self) -> int:
        asked = self.headers["Range"]
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


def whole(handler: _Handler) -> None:
    """All that was asked for, ranges included."""
    body, first = handler.server.content, handler.offset
    headers = {"Content_Length": len(body) - first}
    if first:
        headers["Content_Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
    handler.begin(206 if first else 200, **headers)
    handler.wfile.write(body[first:])


def breaking_off_after(count: int):
    """Announces everything, sends ``count`` bytes and hangs up."""

    def answer(handler: _Handler) -> None:
        body, first = handler.server.content, handler.offset
        headers = {"Content_Length": len(body) - first}
        if first:
            headers["Content_Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        handler.begin(206 if first else 200, **headers)
        handler.wfile.write(body[first : first + count])
        handler.hang_up()

    return answer


def ignoring_ranges(handler: _Handler) -> None:
    """The whole file with status 200, whatever was asked for."""
    handler.begin(200, Content_Length=len(handler.server.content))
    handler.wfile.write(handler.server.content)


def another_range(handler: _Handler) -> None:
    """206, but from byte 5 on."""
    body = handler.server.content
    handler.begin(
        206,
        Content_Length=len(body) - 5,
        Content_Range=f"bytes 5-{len(body) - 1}/{len(body)}",
    )
    handler.wfile.write(body[5:])


def status(number: int, **headers: object):
    """Nothing but a status."""

    def answer(handler: _Handler) -> None:
        handler.begin(number, Content_Length=0, **headers)

    return answer


def announcing(size: int):
    """Another size than the file has."""

    def answer(handler: _Handler) -> None:
        handler.begin(200, Content_Length=size)
        handler.wfile.write(handler.server.content)
        handler.hang_up()

    return answer


def without_end(handler: _Handler) -> None:
    """No size announced, and more and more bytes; stops only when the client hangs up."""
    handler.begin(200, Transfer_Encoding="chunked")
    for _ in range(10_000):
        handler.wfile.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
    raise AssertionError("the client took 650 MB")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def sleeps():
    return []


@pytest.fixture
def get(server, tmp_path, sleeps):
    """Downloads from the server to ``tmp_path`` without really sleeping."""

    def get(source: Source | None = None, on_progress=None) -> Path:
        return download(source or server.source(), tmp_path, on_progress, sleep=sleeps.append)

    return get


# ---------------------------------------------------------------- downloading


def test_download_places_the_verified_file(get, server, tmp_path, caplog):
    """The bytes of the server, progress up to the whole, no part file, and no word from httpx."""
    caplog.set_level(logging.DEBUG)
    progress = []
    path = get(on_progress=lambda done, total: progress.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]
    assert progress[-1] == (300_000, 300_000)
    assert all(before < after for before, after in pairwise(progress))
    assert [record for record in caplog.records if record.name.startswith("http")] == []


def test_broken_transfer_is_gone_on_with(get, server, sleeps):
    """Twice cut off, the third request asks for the rest only and the whole is right."""
    server.answers = [breaking_off_after(100_000), breaking_off_after(50_000), whole]
    assert get().read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    # Each brought something new, so neither wait is longer than the first.
    assert sleeps == [1.0, 1.0]


def test_next_run_goes_on_from_the_part_file(get, server, tmp_path, sleeps):
    """Given up after five attempts that brought nothing, the bytes are kept for the next run."""
    server.answers = [breaking_off_after(70_000), status(503)]
    with pytest.raises(DownloadError, match="70000 of 300000 bytes are kept") as caught:
        get()
    assert "run this again" in str(caught.value)
    assert server.ranges == [None] + ["bytes=70000-"] * 5
    assert sleeps == [1.0, 1.0, 2.0, 4.0, 8.0]
    assert not (tmp_path / "file.bin").exists()
    server.answers, server.ranges = [whole], []
    assert get().read_bytes() == CONTENT
    assert server.ranges == ["bytes=70000-"]


@pytest.mark.parametrize("answer", [ignoring_ranges, another_range, status(416)])
def test_servers_that_cannot_go_on_are_asked_for_the_whole(get, server, tmp_path, answer):
    """Range ignored, another range, or none to give: the result is still the right file."""
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.answers = [answer, whole]
    assert get().read_bytes() == CONTENT
    assert server.ranges[0] == "bytes=1000-"
    assert server.ranges[1:] == ([] if answer is ignoring_ranges else [None])


def test_server_that_always_starts_over_and_breaks_off_is_given_up(get, server, sleeps):
    """Bytes that were there before are no progress: five attempts after the first, not for ever."""

    def answer(handler: _Handler) -> None:
        handler.begin(200, Content_Length=len(CONTENT))
        handler.wfile.write(CONTENT[:9000])
        handler.hang_up()

    server.answers = [answer]
    with pytest.raises(DownloadError, match="5 attempts in a row"):
        get()
    assert len(server.ranges) == 6
    assert sleeps == [1.0, 1.0, 2.0, 4.0, 8.0]


def test_part_file_that_is_too_long_is_started_over(get, server, tmp_path):
    """A part of something else cannot be gone on with."""
    (tmp_path / "file.bin.part").write_bytes(bytes(300_001))
    assert get().read_bytes() == CONTENT
    assert server.ranges == [None]


def test_complete_part_file_needs_no_request(get, server, tmp_path):
    """Stopped just before the last step: the checksum is taken and the file placed."""
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert server.ranges == []


@pytest.mark.parametrize("size", [299_999, 300_001, 10**15])
def test_announced_size_that_is_not_the_official_one_is_refused(get, server, tmp_path, size):
    """A server that announces another size is not asked for the body, and nothing is kept."""
    server.answers = [announcing(size)]
    with pytest.raises(DataError, match=f"expected 300000 bytes, the server sends {size} bytes"):
        get()
    assert list(tmp_path.iterdir()) == []


def test_body_without_end_is_cut_at_the_official_size(get, server, tmp_path):
    """No more than the official number of bytes is ever written."""
    server.answers = [without_end]
    written = []
    with pytest.raises(DataError, match="more than 300000 bytes"):
        get(on_progress=lambda done, total: written.append(done))
    assert max(written) <= 300_000
    assert list(tmp_path.iterdir()) == []


def test_wrong_content_of_the_right_size_is_refused(get, server, tmp_path):
    """The checksum decides; what came is removed and the next run starts afresh."""
    source = server.source()
    server.content = bytes(300_000)
    with pytest.raises(DataError, match="is not the official file; what arrived was removed"):
        get(source)
    assert list(tmp_path.iterdir()) == []


def test_refusal_is_not_repeated(get, server, sleeps):
    """404 is an answer: one request, no waiting."""
    server.answers = [status(404)]
    with pytest.raises(DownloadError, match="404 Not Found"):
        get()
    assert (len(server.ranges), sleeps) == (1, [])


def test_redirects_are_followed(get, server):
    """The official addresses move."""
    server.answers = [status(302, Location="/elsewhere"), whole]
    assert get().read_bytes() == CONTENT


def test_no_server_at_all(tmp_path, sleeps, monkeypatch):
    """A refused connection is tried five times, then said."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        source = Source(url=url, filename="x", sha256="0" * 64, size=10)
        with pytest.raises(DownloadError, match="0 of 10 bytes"):
            download(source, tmp_path, sleep=sleeps.append)
    assert sleeps == [1.0, 2.0, 4.0, 8.0]


def test_two_processes_do_not_write_the_same_part_file(get, server, tmp_path):
    """While one process holds the part file another is told so and changes nothing."""
    with (tmp_path / "file.bin.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="Another process is downloading"):
            get()
    assert server.ranges == []


def test_unwritable_folder_and_full_disk_are_said_before_the_download(server, tmp_path):
    """A place that cannot be written and one that is too small, both with another way to go."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="--data-dir"):
        download(server.source(), tmp_path / "file" / "data")
    with pytest.raises(StorageError, match="MiB are free"):
        download(server.source(size=1 << 60), tmp_path / "data")
    assert server.ranges == []


# ---------------------------------------------------------------- unpacking


def zip_of(path: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def unpacked(path: Path, target: Path) -> None:
    with path.open("rb") as file:
        unpack_zip(file, path, target)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/tmp/evil",
        "top/../../evil",
        "other/evil",
        "top/..\\..\\evil",
        "top/link",
        "top/device",
    ],
)
def test_members_outside_the_folder_and_links_are_refused(tmp_path, name):
    """One such member and nothing at all is unpacked, neither inside nor outside."""
    modes = {"top/link": stat.S_IFLNK | 0o777, "top/device": stat.S_IFCHR | 0o666}
    (tmp_path / "data").mkdir()
    archive = zip_of(tmp_path / "data" / "a.zip", {"top/good": b"1", name: b"../../evil"}, modes)
    with pytest.raises(DataError, match="is no file or folder inside top/"):
        unpacked(archive, tmp_path / "data" / "top")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "a.zip"]


def test_archives_that_grow_too_large_are_refused(tmp_path, monkeypatch):
    """The declared size is bounded before anything is written, and so is the number of files."""
    archive = zip_of(tmp_path / "a.zip", {"top/zeros": bytes(50_000), "top/more": b"1"})
    monkeypatch.setattr(unpack, "MAX_UNPACKED_BYTES", 50_000)
    with pytest.raises(DataError, match="50001 bytes in 2 members"):
        unpacked(archive, tmp_path / "top")
    monkeypatch.setattr(unpack, "MAX_UNPACKED_BYTES", 60_000)
    monkeypatch.setattr(unpack, "MAX_MEMBERS", 1)
    with pytest.raises(DataError, match="50001 bytes in 2 members"):
        unpacked(archive, tmp_path / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("lie", ["size", "content"])
def test_damaged_member_leaves_nothing_behind(tmp_path, lie):
    """A member larger than it declares, or with a wrong checksum, undoes the whole unpacking."""
    archive = zip_of(tmp_path / "a.zip", {"top/good": b"1", "top/zeros": bytes(1_000_000)})
    content = bytearray(archive.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    # In a member's entry of the directory: bytes 24 to 27 are its size, 16 to 19 its CRC.
    position = entry + (24 if lie == "size" else 16)
    content[position : position + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpacked(archive, tmp_path / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_existing_folder_is_not_overwritten(tmp_path):
    """Unpacking over something is refused and leaves it as it was."""
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="cannot be written"):
        unpacked(zip_of(tmp_path / "a.zip", {"top/theirs": b"1"}), tmp_path / "top")
    assert [path.name for path in (tmp_path / "top").iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "top"}


# ---------------------------------------------------------------- fetching a dataset


def test_fetch_tiny_downloads_and_unpacks_once(server, tmp_path):
    """From the server to loadable images; a second fetch finds it and asks for nothing."""
    source = zip_folder(write_tiny(tmp_path / "tiny", train=4), tmp_path / "tiny-imagenet-200.zip")
    server.content = (tmp_path / "tiny-imagenet-200.zip").read_bytes()
    spec = replace(TINY, sources=(replace(source, url=server.source().url),))
    progress: list[FetchProgress] = []
    data = tmp_path / "data"
    fetched = datasets.fetch(spec, data, progress.append)
    assert fetched.downloaded
    assert fetched.path == data / "tiny-imagenet-200"
    assert [p.activity for p in progress[:1] + progress[-1:]] == ["downloading", "unpacking"]
    assert progress[-1].done == progress[-1].total
    assert {path.name for path in data.iterdir()} == {
        "tiny-imagenet-200",
        "tiny-imagenet-200.zip",
    }
    loaded = datasets.load_split(spec, "train", data, tmp_path / "cache")
    assert loaded.images_per_class == loaded.official_images_per_class == 4
    again = datasets.fetch(spec, data)
    assert not again.downloaded
    assert "already there, complete" in again.message
    assert len(server.ranges) == 1


def test_fetch_does_not_touch_an_incomplete_copy(server, tmp_path):
    """A smaller Tiny ImageNet where the whole one would go: said, and left alone."""
    root = write_tiny(tmp_path / "tiny-imagenet-200", train=3)
    before = sorted(root.rglob("*"))
    spec = replace(TINY, sources=(server.source(filename="tiny-imagenet-200.zip"),))
    with pytest.raises(OutputError, match="incomplete copy of tinyimagenet"):
        datasets.fetch(spec, tmp_path)
    assert sorted(root.rglob("*")) == before
    assert server.ranges == []


def test_fetch_cifar_keeps_the_archive_and_checks_it_again(server, tmp_path):
    """The archive is used as it is, comes before partial class folders, and is never trusted."""
    built = write_archive(tmp_path / "cifar-100-python.tar.gz", official_files())
    server.content = (tmp_path / "cifar-100-python.tar.gz").read_bytes()
    spec = replace(CIFAR, sources=(replace(built.sources[0], url=server.source().url),))
    data = tmp_path / "data"
    write_class_folders(data / "cifar-100")
    fetched = datasets.fetch(spec, data)
    assert (fetched.downloaded, fetched.path) == (True, data / "cifar-100-python.tar.gz")
    assert datasets.verify(spec, data).form == "official archive"
    again = datasets.fetch(spec, data)
    assert not again.downloaded
    assert "already there" in again.message
    (data / "cifar-100-python.tar.gz").write_bytes(b"changed")
    with pytest.raises(DataError, match="Remove it and fetch it again"):
        datasets.fetch(spec, data)
    assert len(server.ranges) == 1


def test_fetch_checks_unpacked_pickles_before_calling_them_complete(server, tmp_path, monkeypatch):
    """The unpacked official files are enough, if their checksums are right."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, content in official_files().items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(cifar100, "OFFICIAL_MD5", md5_of(official_files()))
    spec = replace(CIFAR, sources=(server.source(),))
    assert datasets.fetch(spec, tmp_path).path == folder
    (folder / "train").write_bytes(official_files()["test"])
    with pytest.raises(DataError, match="Expected MD5"):
        datasets.fetch(spec, tmp_path)
    assert server.ranges == []


def test_fetch_digits_has_nothing_to_do(tmp_path):
    """The default dataset comes with scikit-learn."""
    fetched = acquire.fetch(datasets.get_dataset("digits"), tmp_path)
    assert not fetched.downloaded
    assert "nothing to download" in fetched.message
