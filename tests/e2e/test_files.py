"""The files of a running `modelmill up`."""

from __future__ import annotations

import stat

import httpx

from tests.support.system import Up


def test_large_payloads_lie_in_a_folder_beside_the_data(up: Up) -> None:
    folder = up.log.parent / "data" / "blobs"
    with httpx.Client(base_url=up.url, timeout=30) as client:
        name = client.post("/api/files", files={"file": bytes(300 * 1024)}).json()["id"]
        path = folder / "file" / name.removeprefix("file:")
        assert path.stat().st_size == 300 * 1024
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert client.get(f"/api/files/{name}").content == bytes(300 * 1024)
        assert client.delete(f"/api/files/{name}").status_code == 204
