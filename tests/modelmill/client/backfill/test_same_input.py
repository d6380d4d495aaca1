"""A stopped run is resumed if its input is the same: by content, or because the user says so."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from modelmill.client.backfill import BackfillOptions, InputError, Summary, backfill, identity
from modelmill.client.backfill import run as run_module
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError, ModelmillError
from tests.modelmill.client.backfill.stub import TASK, Stub, refused
from tests.modelmill.client.backfill.test_engine import assert_whole, outcomes

LINES = "".join(json.dumps({"id": number, "text": str(number)}) + "\n" for number in range(300))


def run(stub: Stub, rows: Path | list[Path], output: Path, **options: Any) -> Summary:
    how = BackfillOptions(**{"resume": True, "window": 32, **options})
    where = Connection.make(stub.url, timeout_s=10.0)
    return backfill(where, TASK, "stub", rows, output=output, options=how)


def stop(stub: Stub, rows: Path | list[Path], output: Path, **options: Any) -> None:
    """A run that stops before its end."""
    stub.on_request = lambda asked: refused(403, "forbidden") if asked == "collect" else None
    with pytest.raises(ModelmillError, match="forbidden"):
        run(stub, rows, output, **options)
    stub.on_request = lambda _: None


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(LINES)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_a_file_with_another_time_and_the_same_content_is_the_same(
    stub: Stub, rows: Path, tmp_path: Path
) -> None:
    stop(stub, rows, tmp_path / "out")
    rows.unlink()
    rows.write_text(LINES)

    run(stub, rows, tmp_path / "out")

    assert_whole(tmp_path / "out")
    assert len(stub.by_key) == 300


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("299", "298"), "the content of .*rows.jsonl has changed"),
        (lambda text: text + '{"text":""}\n', f"had {len(LINES):,} bytes, and now has {len(LINES) + 12:,}"),
        (lambda text: text[:-1], f"had {len(LINES):,} bytes, and now has {len(LINES) - 1:,}"),
    ],
)
def test_another_content_is_refused_with_the_reason(
    stub: Stub, rows: Path, tmp_path: Path, change: Any, reason: str
) -> None:
    stop(stub, rows, tmp_path / "out")
    rows.write_text(change(LINES))
    os.utime(rows, ns=(10**18, 10**18))  # not even the time tells

    with pytest.raises(ConfigError, match=f"another input.*{reason}.*give --same-input"):
        run(stub, rows, tmp_path / "out")

    assert run(stub, rows, tmp_path / "out", same_input=True).state == "complete"


@pytest.mark.parametrize("options", [{"encoding": "latin-1"}, {"input_format": "text"}])
def test_the_same_file_that_is_read_otherwise_is_another_input(
    stub: Stub, rows: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    stop(stub, rows, tmp_path / "out")

    with pytest.raises(ConfigError, match="another input"):
        run(stub, rows, tmp_path / "out", **options)


def test_a_moved_file_needs_a_word(stub: Stub, rows: Path, tmp_path: Path) -> None:
    stop(stub, rows, tmp_path / "out")
    moved = rows.rename(tmp_path / "moved.jsonl")

    with pytest.raises(ConfigError, match=r"another input.*give --same-input"):
        run(stub, moved, tmp_path / "out")
    run(stub, moved, tmp_path / "out", same_input=True)

    assert_whole(tmp_path / "out")


def test_a_manifest_of_an_earlier_version_can_be_resumed(stub: Stub, rows: Path, tmp_path: Path) -> None:
    stop(stub, rows, output := tmp_path / "out")
    manifest = json.loads((output / "manifest.json").read_text())
    about = rows.stat()
    manifest["input"] = {
        "path": str(rows.resolve()),
        "bytes": about.st_size,
        "modified_ns": about.st_mtime_ns,
    }
    for added in ("warnings", "skipped"):
        del manifest[added]
    (output / "manifest.json").write_text(json.dumps(manifest))
    os.utime(rows, ns=(10**18 + 1, 10**18 + 1))

    with pytest.raises(ConfigError, match="nothing proves that its content is the same"):
        run(stub, rows, output)
    os.utime(rows, ns=(10**18, 10**18))
    run(stub, rows, output)

    assert_whole(output)


def test_of_a_large_file_samples_are_compared(
    stub: Stub, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(identity, "SAMPLES", 3)
    monkeypatch.setattr(identity, "SAMPLE_BYTES", 100)
    stop(stub, rows, tmp_path / "out")

    os.utime(rows)
    with pytest.raises(ConfigError, match="nothing proves"):
        run(stub, rows, tmp_path / "out")
    rows.write_text(LINES.replace('"299"', '"298"'))
    with pytest.raises(ConfigError, match=r"the content of .* has changed"):
        run(stub, rows, tmp_path / "out")
    rows.write_text(LINES)
    os.utime(rows, ns=(10**18, 10**18))

    assert run(stub, rows, tmp_path / "out").state == "complete"


def test_a_file_that_was_cut_off_is_completed_by_the_whole_one(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(
        json.dumps({"text": str(number), "id": number, "noise": os.urandom(600).hex()}) + "\n"
        for number in range(300)
    )
    whole = gzip.compress(lines.encode())
    path, output = tmp_path / "rows.jsonl.gz", tmp_path / "out"
    path.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(InputError, match=r"row \d+: the packed data end too early"):
        run(stub, path, output)
    assert not output.exists()
    assert not stub.seen

    monkeypatch.setattr(run_module, "CHECKED_BYTES", 0)  # as in a file that is larger
    with pytest.raises(InputError, match=r"row (\d+): .* run the same command with --resume") as caught:
        run(stub, path, output)
    done = outcomes(output)
    assert sorted(done) == list(range(len(done)))
    assert f"row {len(done)}:" in str(caught.value)
    assert 32 < len(done) < 300
    assert json.loads((output / "manifest.json").read_text())["input_is_cut"]
    with pytest.raises(InputError, match="too early"):
        run(stub, path, output)
    at = len(whole) // 2 - 10
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ConfigError, match="another input"):
        run(stub, path, output)

    path.write_bytes(whole)
    summary = run(stub, path, output)

    assert summary.rows == 300
    assert sorted(outcomes(output)) == list(range(300))
    assert len(stub.by_key) == 300
    assert "input_is_cut" not in json.loads((output / "manifest.json").read_text())


def test_each_of_several_inputs_must_be_the_same(stub: Stub, rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": 300, "text": "300"}\n')
    stop(stub, [rows, other], tmp_path / "out")
    os.utime(other, ns=(1, 1))

    with pytest.raises(ConfigError, match="another input"):
        run(stub, [rows], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"rows.jsonl is not .*other.jsonl|other.jsonl is not"):
        run(stub, [other, rows], tmp_path / "out")
    run(stub, [rows, other], tmp_path / "out")

    assert_whole(tmp_path / "out", 301)
