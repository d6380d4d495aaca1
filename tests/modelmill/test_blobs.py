"""Blob stores: a folder, and S3 as moto plays it over a real socket."""

from __future__ import annotations

import importlib.util
import io
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modelmill.blobs import CHUNK_BYTES, BlobError, BlobStore
from modelmill.errors import ConfigError, ErrorCode
from modelmill.settings import Settings

LARGE = os.urandom(CHUNK_BYTES) * 6
"""More than the 5 MiB from which on S3 takes an object in parts."""


def opened(url: str) -> BlobStore:
    store = BlobStore.from_settings(Settings(blob_url=url))
    assert store is not None
    return store


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    from botocore.session import get_session
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        get_session().create_client("s3").create_bucket(Bucket="blobs")
        yield "s3://blobs/some/prefix"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    url = str(tmp_path / "blobs") if request.param == "folder" else request.getfixturevalue("s3_url")
    return opened(url)


def test_what_is_put_is_there_until_it_is_deleted(blobs: BlobStore) -> None:
    assert blobs.get("in/a") is None
    assert blobs.open("in/a") is None
    blobs.put_many({"in/a": b"first", "out/a.b": b"\0second"})
    blobs.put("in/a", b"again")
    assert blobs.get_many(["in/a", "out/a.b", "in/b"]) == {
        "in/a": b"again",
        "out/a.b": b"\0second",
        "in/b": None,
    }
    assert blobs.get_many([]) == {}
    assert sorted(blobs.names(-60)) == ["in/a", "out/a.b"]
    assert list(blobs.names(60)) == []
    blobs.delete(["in/a", "in/never", "out/a.b"])
    blobs.delete(["in/a"])
    blobs.delete([])
    assert list(blobs.names(-60)) == []


@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "in parts"])
def test_a_file_is_written_and_read_in_pieces(blobs: BlobStore, content: bytes) -> None:
    blobs.put_file("file/a", io.BytesIO(content))
    source = blobs.open("file/a")
    assert source is not None
    with source:
        assert b"".join(iter(lambda: source.read(CHUNK_BYTES), b"")) == content
    blobs.delete(["file/a"])


@pytest.mark.parametrize("after", [0, 6 * CHUNK_BYTES])
def test_of_what_was_not_written_to_its_end_nothing_is_there(blobs: BlobStore, after: int) -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= after:
                raise OSError("the caller hung up")
            return super().read(size)

    with pytest.raises(BlobError):
        blobs.put_file("file/b", Breaks(LARGE + LARGE))
    assert blobs.get("file/b") is None
    assert list(blobs.names(-60)) == []


def test_threads_may_share_it(blobs: BlobStore) -> None:
    def turn(number: int) -> bytes | None:
        blobs.put(f"in/{number}", b"%d" % number)
        found = blobs.get(f"in/{number}")
        blobs.delete([f"in/{number}"])
        return found

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(turn, range(24))) == [b"%d" % number for number in range(24)]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "in",
        "in/",
        "in/..",
        "../in/a",
        "in/../a",
        "/in/a",
        "in/a/b",
        "else/a",
        "in/a\n",
        "in/a.b.c",
        "in/é",
    ],
)
def test_only_names_of_ours_pass(blobs: BlobStore, name: str) -> None:
    with pytest.raises(ValueError):
        blobs.put(name, b"")
    with pytest.raises(ValueError):
        blobs.get(name)
    with pytest.raises(ValueError):
        blobs.delete([name])


def test_the_folder_is_for_its_user_only(tmp_path: Path) -> None:
    opened(f"file://{tmp_path}/one%20two").put("in/a", b"x")
    folder = tmp_path / "one two"
    for path in (folder, folder / "in"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "in" / "a").stat().st_mode) == 0o600


def test_what_a_dead_process_left_half_written_is_named_when_it_is_old(tmp_path: Path) -> None:
    blobs = opened(str(tmp_path))
    (tmp_path / "tmp" / "tmpabc_12").write_bytes(b"half")
    (tmp_path / "in" / "not one of ours").write_bytes(b"")
    assert list(blobs.names(60)) == []
    old = time.time() - 120
    os.utime(tmp_path / "tmp" / "tmpabc_12", (old, old))
    assert list(blobs.names(60)) == ["tmp/tmpabc_12"]
    blobs.delete(["tmp/tmpabc_12"])
    assert list(blobs.names(-60)) == []


def test_a_store_that_does_not_answer_is_an_error_to_be_retried(tmp_path: Path, s3_url: str) -> None:
    folder = opened(str(tmp_path / "blobs"))
    (tmp_path / "blobs" / "in").rmdir()
    (tmp_path / "blobs" / "in").write_text("no folder")
    for blobs in (folder, opened("s3://no-such-bucket/x")):
        with pytest.raises(BlobError) as caught:
            blobs.put("in/a", b"x")
        assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.STORE_UNAVAILABLE, 2)
    (tmp_path / "blobs" / "out").rmdir()
    with pytest.raises(BlobError):
        folder.get("out/a.b")


def test_without_the_setting_there_is_none() -> None:
    assert BlobStore.from_settings(Settings()) is None


def test_a_wrong_setting_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no store of the kind 'gopher'"):
        opened("gopher://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        opened(str(tmp_path / "file" / "blobs"))
    found = importlib.util.find_spec

    def none_of_s3(name: str, package: str | None = None) -> Any:
        return None if name == "s3fs" else found(name, package)

    monkeypatch.setattr("modelmill.blobs.find_spec", none_of_s3)
    with pytest.raises(ConfigError, match=r"pip install 'modelmill\[s3\]'"):
        opened("s3://bucket")
