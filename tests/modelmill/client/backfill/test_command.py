"""The command ``backfill``, in its own process, against the real API and real workers."""

from __future__ import annotations

import csv
import gzip
import json
import random
import signal
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelmill import processes
from modelmill.client.backfill.stats import Stats, Summary
from modelmill_cli import backfill_display
from modelmill_cli.console import err
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.sources import source_bytes
from tests.modelmill.client.backfill.stub import Stub
from tests.support.processes import wait_until
from tests.support.workers import Workers

TASK = "zero-shot-image-classification"
StartWorkers = Callable[..., Workers]


def command(url: object, model: str, *options: str) -> list[str]:
    return processes.python("-m", "modelmill_cli", "backfill", TASK, model, "--url", str(url), *options)


def run(url: object, model: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(url, model, *options), capture_output=True, text=True, timeout=60)


def write_rows(path: Path, count: int) -> None:
    rows = ({"id": number, "image": CAT, "classes": [str(number), "0"]} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def assert_echoed(output: Path, count: int) -> list[dict[str, Any]]:
    """Each row is in the output once, with its own result: the model answers with the classes."""
    shards = sorted(output.glob("part-*.jsonl"))
    lines = [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == list(range(count))
    for line in lines:
        assert line["result"] == {"probabilities": [line["row"], 0.0]}
        assert line["input"] == {"id": line["row"]}
    return lines


def done(output: Path) -> int:
    try:
        return int(json.loads((output / "checkpoint.json").read_text())["complete"])
    except FileNotFoundError:
        return 0


class Gate:
    """Lets a model finish only the rows below a limit, so that a run cannot end before the test stops it."""

    def __init__(self, folder: Path) -> None:
        self._limit = folder / "limit"
        self.models_file = folder / "gated.toml"
        self.models_file.write_text(
            '[models.gated]\nbackend = "test"\nrunner = "tests.fixtures.runners:GatedRunner"\n'
            f'tasks = ["{TASK}"]\nmax_batch = 8\n'
            f"options = {{ batch_s = 0.04, limit_file = {json.dumps(str(self._limit))} }}\n"
        )

    def open_below(self, row: int) -> None:
        part = self._limit.with_suffix(".part")
        part.write_text(str(row))
        part.replace(self._limit)


def test_a_run_that_is_killed_and_resumed_does_each_row_once(
    api: httpx.Client, start_workers: StartWorkers, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    start_workers("--models-file", str(gate.models_file), "--models", "gated")
    write_rows(tmp_path / "rows.jsonl", count := 480)
    output = tmp_path / "out"
    options = (
        *("--input", str(tmp_path / "rows.jsonl"), "--output", str(output)),
        *("--window", "32", "--shard-rows", "120"),
    )
    chance = random.Random(7)
    # A shell starts the background programs of a script like this.
    ignoring_sigint = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        gate.open_below(done(output) + 150)
        with (tmp_path / "log").open("w+b") as log:
            resumed = command(api.base_url, "gated", *options, "--resume")
            process = processes.start([*ignoring_sigint, *resumed], log=log)
            enough = done(output) + chance.randrange(1, 30)
            wait_until(lambda: done(output) >= enough or process.poll() is not None)  # noqa: B023
            process.send_signal(number)
            process.wait(30)
    assert process.returncode == 130
    assert "run the same command with --resume" in " ".join((tmp_path / "log").read_text().split())
    assert 0 < done(output) < count

    gate.open_below(count)
    refused = run(api.base_url, "gated", *options)
    finished = run(api.base_url, "gated", *options, "--resume", "--json")

    assert refused.returncode == 1
    assert "holds a run already" in " ".join(refused.stderr.split())
    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout)
    assert (summary["state"], summary["rows"], summary["failed"]) == ("complete", count, 0)
    assert [shard["rows"] for shard in summary["shards"]] == [120] * 4
    lines = assert_echoed(output, count)
    assert len({line["job_id"] for line in lines}) == count
    # Nothing ran twice, and nothing is left on the server.
    counted = [
        line for line in api.get("/metrics").text.splitlines() if line.startswith("modelmill_jobs_total{")
    ]
    assert [line.rpartition(" ")[2] for line in counted] == [f"{count}.0"]
    asked = api.post("/api/jobs:collect", json={"ids": [line["job_id"] for line in lines]})
    assert [json.loads(line)["status"] for line in asked.text.splitlines()] == [None] * count


def probabilities(fields: dict[str, Any]) -> dict[str, Any]:
    return {"status": "complete", "result": {"probabilities": [float(name) for name in fields["classes"]]}}


def test_a_full_disk_ends_a_run_that_can_be_resumed(stub: Stub, tmp_path: Path) -> None:
    stub.on_end = probabilities
    write_rows(tmp_path / "rows.jsonl", count := 2000)
    output = tmp_path / "out"
    options = ("--input", str(tmp_path / "rows.jsonl"), "--output", str(output), "--window", "64")

    # For a program, a limit on the size of files looks like a full disk.
    limit = ("bash", "-c", 'ulimit -f 100; exec "$@"', "bash")
    limited = [*limit, *command(stub.url, "stub", *options, "--quiet")]
    stopped = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    finished = run(stub.url, "stub", *options, "--resume")

    assert stopped.returncode == 1
    assert "the output cannot be written" in " ".join(stopped.stderr.split())
    assert "resume" in stopped.stderr
    assert finished.returncode == 0, finished.stderr
    assert_echoed(output, count)
    assert len(stub.by_key) == count


def test_photos_named_in_a_spreadsheet_become_a_parquet_file(stub: Stub, tmp_path: Path) -> None:
    stub.on_end = lambda _: {"status": "complete", "result": {"probabilities": [0.5, 0.5]}}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(source_bytes(CAT))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("photo", "id"), ("photos/a.png", 1), ("photos/b.png", 2)])
    output = tmp_path / "out"

    ended = run(
        *(stub.url, "stub", "--input", str(tmp_path / "rows.csv"), "--output", str(output)),
        *("--set", "classes=cat,dog", "--map", "image=photo", "--format", "parquet", "--tag", "mine"),
    )

    assert ended.returncode == 0, ended.stderr
    assert "2 rows, 1 failed" in ended.stdout
    assert "media_not_found: 1" in ended.stdout
    rows = import_module("pyarrow.parquet").read_table(output / "part-00000.parquet").to_pylist()
    rows.sort(key=lambda row: row["row"])
    assert [row["status"] for row in rows] == ["complete", "failed"]
    assert rows[0]["result"] == {"probabilities": [0.5, 0.5]}
    assert json.loads(rows[0]["input"]) == {"photo": "photos/a.png", "id": "1"}
    assert rows[1]["error"]["code"] == "media_not_found"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "nothing.jsonl"], "there is no file or folder nothing.jsonl"),
        (["--input", "rows.jsonl.gz"], "rows.jsonl.gz, row 1: the packed data end too early"),
        (["--input", "rows.jsonl", "--encoding", "nope"], "there is no encoding 'nope'"),
        (["--input", "rows.jsonl", "--set", "colour=red"], "the task has no field colour"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_leaves_nothing(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 1)
    packed = gzip.compress((tmp_path / "rows.jsonl").read_bytes())
    (tmp_path / "rows.jsonl.gz").write_bytes(packed[:-8])

    ended = run(stub.url, "stub", *options, "--output", "out")

    assert ended.returncode == 1
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "rows.jsonl.gz"]


def test_rows_may_come_from_standard_input(stub: Stub, tmp_path: Path) -> None:
    stub.on_end = lambda fields: {
        **probabilities({"classes": [0]}),
        "warnings": [{"item": 0, "code": fields["classes"][0], "message": "No."}],
    }
    rows = f"{CAT}\t日本 2024\r\n{CAT}\tplain\r\n"
    options = ["--input", "-", "--input-format", "tsv", "--output", "out", "--map", "classes=label"]

    ended = subprocess.run(
        command(stub.url, "stub", *options),
        input=f"image\tlabel\r\n{rows}".encode("utf-16"),
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
    )

    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.decode()
    assert "2 rows, in" in said
    assert "rows with the warning 日本 2024: 1" in said
    assert "rows with the warning plain: 1" in said
    assert not list((tmp_path / "out").glob("input-*"))


def test_a_run_that_waits_for_the_api_says_so_and_can_be_interrupted(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 1)
    url = f"http://127.0.0.1:{processes.free_port()}"
    options = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    with (tmp_path / "log").open("w+b") as log:
        process = processes.start(command(url, "stub", *options), log=log)
        wait_until(lambda: "waiting: " in (tmp_path / "log").read_text() or process.poll() is not None)

        process.send_signal(signal.SIGINT)

        assert process.wait(30) == 130
    said = " ".join((tmp_path / "log").read_text().split())
    assert f"waiting: {url} does not answer (" in said
    assert "0 rows are done. To continue, run the same command with --resume." in said
    assert not (tmp_path / "out").exists()


def test_progress_is_shown_in_words() -> None:
    stats = Stats(
        total=2000, complete=900, failed=3, errors={"invalid_input": 2, "internal": 1}, in_flight=64
    )
    stats.trouble = "the server does not answer"
    stats.retried = 4

    with err.capture() as captured:
        err.print(backfill_display._details(stats, with_done=True))
        backfill_display.show_summary(
            Summary(
                "stopped",
                "3 rows failed",
                Path("out"),
                "id",
                903,
                900,
                3,
                stats.errors,
                {},
                {},
                [],
                75.0,
                12.3,
            ),
            as_json=False,
        )

    text = " ".join(captured.get().split())
    for part in (
        "903 of 2,000 rows",
        "3 failed",
        "64 in flight",
        "4 retried",
        "invalid_input 2",
        "waiting: the",
    ):
        assert part in text
    assert "stopped: 3 rows failed." in text
