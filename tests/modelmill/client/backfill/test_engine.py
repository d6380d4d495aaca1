"""The engine against a server that misbehaves. In every case, each row is in the output once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from modelmill import processes
from modelmill.client.backfill import BackfillOptions, Stats, Summary, backfill, backfill_async, chunks
from modelmill.client.backfill import engine as engine_module
from modelmill.client.backfill import output as output_module
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from tests.modelmill.client.backfill.stub import TASK, Stub, refused

ROWS = [{"id": number, "text": str(number)} for number in range(300)]


def connection(url: str) -> Connection:
    return Connection.make(url, timeout_s=10.0)


def run(stub: Stub, output: Path, rows: Any = ROWS, **options: Any) -> Summary:
    how = BackfillOptions(**options)
    return backfill(connection(stub.url), TASK, "stub", rows, output=output, options=how)


def outcomes(output: Path) -> dict[int, dict[str, Any]]:
    shards = sorted(output.glob("part-*"))
    lines = [json.loads(line) for shard in shards for line in shard.read_bytes().splitlines()]
    found = {line["row"]: line for line in lines}
    assert len(found) == len(lines), "a row is there twice"
    return found


def assert_whole(output: Path, count: int = 300) -> None:
    found = outcomes(output)
    assert sorted(found) == list(range(count))
    for number, line in found.items():
        assert line["status"] == "complete"
        assert line["result"] == {"embedding": [str(number)]}
        assert line["input"] == {"id": number}


def test_every_row_is_written_and_its_job_deleted(stub: Stub, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []

    def note(stats: Stats) -> None:
        told.append((stats.done, stats.total))

    summary = run(stub, tmp_path, window=32, tags=["mine"], on_progress=note)

    assert_whole(tmp_path)
    assert (summary.state, summary.rows, summary.complete, summary.failed) == ("complete", 300, 300, 0)
    assert stub.in_flight <= 32
    assert set(stub.seen.values()) == {1}
    assert set(stub.seen) == {f"{summary.run_id}-{number}" for number in range(300)}
    assert stub.jobs == {}
    assert told[-1] == (300, 300)


def test_a_window_of_one_is_enough(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path, ROWS[:10], window=1)

    assert_whole(tmp_path, 10)
    assert stub.in_flight == 1


def test_a_window_beyond_one_collect_is_asked_for_in_parts(stub: Stub, tmp_path: Path) -> None:
    rows = ({"id": number, "text": str(number)} for number in range(5000))

    summary = run(stub, tmp_path, rows, window=2500, shard_rows=1500)

    assert_whole(tmp_path, 5000)
    assert [shard["rows"] for shard in summary.shards] == [1500, 1500, 1500, 500]
    assert stub.in_flight > 1000


def test_an_input_without_rows_is_complete(stub: Stub, tmp_path: Path) -> None:
    assert run(stub, tmp_path, []).state == "complete"
    assert outcomes(tmp_path) == {}


def test_answers_that_are_cut_off_are_asked_for_again(stub: Stub, tmp_path: Path) -> None:
    stub.cut_after = [0, 3, 1, 7]

    run(stub, tmp_path, window=32)

    assert_whole(tmp_path)
    assert len(stub.by_key) == 300


def test_jobs_are_deleted_as_fast_as_they_end(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "CHECKPOINT_ROWS", 20)
    monkeypatch.setattr(output_module, "COLLECT_IDS", 10)
    most = 0

    def look(_: str) -> None:
        nonlocal most
        most = max(most, len(stub.jobs))

    stub.on_request = look
    rows = [{"id": number, "text": str(number)} for number in range(1000)]
    run(stub, tmp_path, rows, window=32)

    assert not stub.jobs
    assert most < 400, "of each checkpoint's rows only the first ten were deleted"


@pytest.mark.parametrize("what", ["bulk", "collect", "delete"])
def test_a_server_in_trouble_is_waited_for(stub: Stub, tmp_path: Path, what: str) -> None:
    answers = [
        refused(503, "store_unavailable"),
        refused(429, "rate_limited", **{"Retry-After": "0"}),
        Response("<html>Bad Gateway</html>", 502),
        Response("not json\n", 200),
    ]
    stub.on_request = lambda asked: answers.pop() if asked == what and answers else None

    run(stub, tmp_path)

    assert_whole(tmp_path)
    assert not answers or what == "delete"


def test_a_request_that_is_too_large_for_a_proxy_is_sent_in_parts(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 8)
    refusals = [1] * 6

    def fail(asked: str) -> Response | None:
        return Response("too large", 413) if asked == "bulk" and refusals and refusals.pop() else None

    stub.on_request = fail

    run(stub, tmp_path, ROWS[:16], max_error_rate=1)

    found = outcomes(tmp_path)
    assert sorted(found) == list(range(16))
    assert all(
        row["error"]["code"] == "body_too_large" for row in found.values() if row["status"] == "failed"
    )


def test_a_full_queue_is_waited_for_and_a_quota_is_kept(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "REGROW_S", 0.2)
    most = 0

    def refuse(fields: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal most
        most = max(most, len(stub.waiting))
        if len(stub.waiting) < 10:
            return None
        return {"code": "quota_exceeded", "message": "Full.", "retryable": True, "retry_after_s": 0.02}

    stub.on_line = refuse

    run(stub, tmp_path, window=64)

    assert_whole(tmp_path)
    assert most == 10
    assert len(stub.by_key) == 300


def test_refused_rows_fail_alone(stub: Stub, tmp_path: Path) -> None:
    error = {"code": "invalid_input", "message": "text: no", "retryable": False}
    stub.on_line = lambda fields: error if fields["text"] in ("7", "250") else None

    summary = run(stub, tmp_path)

    found = outcomes(tmp_path)
    assert {number for number, row in found.items() if row["status"] == "failed"} == {7, 250}
    assert found[7]["error"] == error
    assert (summary.state, summary.failed, summary.errors) == ("complete", 2, {"invalid_input": 2})


def test_failed_jobs_are_tried_again_if_that_may_help(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "RETRY_S", 0.01)

    def end(fields: dict[str, Any]) -> dict[str, Any] | None:
        tries = fields["idempotency_key"].count("-")
        if fields["text"] == "1" and tries < 2:
            return {"status": "failed", "error": {"code": "out_of_memory", "message": "x", "retryable": True}}
        if fields["text"] == "2":
            return {
                "status": "failed",
                "error": {"code": "delivery_limit", "message": "y", "retryable": True},
            }
        if fields["text"] == "3":
            return {"status": "failed", "error": {"code": "internal", "message": "z", "retryable": False}}
        return {"status": "canceled"} if fields["text"] == "4" else None

    stub.on_end = end

    summary = run(stub, tmp_path, ROWS[:6], retries=2)

    run_id, found = summary.run_id, outcomes(tmp_path)
    assert found[1]["status"] == "complete"
    assert found[2]["error"]["code"] == "delivery_limit"
    assert found[4]["error"]["code"] == "job_canceled"
    assert {f"{run_id}-1", f"{run_id}-1-1", f"{run_id}-2-1", f"{run_id}-2-2"} <= set(stub.seen)
    assert len(stub.seen) == 6 + 1 + 2
    assert summary.errors == {"delivery_limit": 1, "internal": 1, "job_canceled": 1}
    assert stub.jobs == {}


def test_a_job_that_the_server_forgot_is_submitted_anew(stub: Stub, tmp_path: Path) -> None:
    forgotten: set[str] = set()

    def forget(asked: str) -> None:
        if asked == "collect" and not forgotten:
            forgotten.update(list(stub.jobs)[:3])
            for job_id in forgotten:
                del stub.jobs[job_id]

    stub.on_request = forget

    run(stub, tmp_path)

    assert_whole(tmp_path)
    assert len(stub.by_key) == 303


def test_a_key_that_was_used_for_another_request_is_replaced(stub: Stub, tmp_path: Path) -> None:
    error = {"code": "idempotency_conflict", "message": "no", "retryable": False}
    stub.on_line = lambda fields: error if fields["idempotency_key"].endswith("-5") else None

    run(stub, tmp_path, ROWS[:10])

    assert_whole(tmp_path, 10)


def test_a_run_that_fails_too_often_stops_and_can_go_on(stub: Stub, tmp_path: Path) -> None:
    error = {"code": "inference_failed", "message": "no", "retryable": False}
    stub.on_end = lambda fields: (
        {"status": "failed", "error": error} if int(fields["text"]) % 4 == 0 else None
    )

    summary = run(stub, tmp_path, window=16, key="rows")

    assert summary.state == "stopped"
    assert "rows failed" in summary.reason
    assert 100 <= summary.rows < 300
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["state"], manifest["reason"]) == ("stopped", summary.reason)
    with pytest.raises(ConfigError, match="resume it, or use another folder"):
        run(stub, tmp_path, key="rows")

    summary = run(stub, tmp_path, window=16, key="rows", resume=True, max_error_rate=0.5)

    assert (summary.state, summary.rows, summary.failed) == ("complete", 300, 75)
    assert sorted(outcomes(tmp_path)) == list(range(300))


@pytest.mark.parametrize("code", ["lane_not_allowed", "unauthenticated"])
def test_a_refusal_that_concerns_every_row_ends_the_run(stub: Stub, tmp_path: Path, code: str) -> None:
    stub.on_line = lambda _: {"code": code, "message": "You may not.", "retryable": False}

    with pytest.raises(ModelmillError, match="You may not") as caught:
        run(stub, tmp_path, key="rows")

    assert caught.value.code == code
    assert outcomes(tmp_path) == {}
    stub.on_line = lambda _: None
    run(stub, tmp_path, key="rows", resume=True)
    assert_whole(tmp_path)


def test_a_server_that_stays_away_is_given_up(stub: Stub, tmp_path: Path) -> None:
    stub.on_request = lambda _: refused(503, "store_unavailable")

    with pytest.raises(ModelmillError, match=r"no answer for .* Nothing is lost"):
        run(stub, tmp_path, give_up_after_s=0.3)

    assert outcomes(tmp_path) == {}


def test_what_is_wrong_before_the_start_leaves_nothing(stub: Stub, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for error, match, how in (
        (ConfigError, "nothing gives text", {"rows": [{"id": 1}]}),
        (ConfigError, "no field colour", {"set": {"colour": "red"}}),
        (ConfigError, "no lane 'slow'", {"lane": "slow"}),
        (ConfigError, "16 tags", {"tags": ["x"] * 17}),
        (ConfigError, "30 days", {"result_ttl_s": 0}),
        (ConfigError, "the window", {"window": 0}),
        (ConfigError, "rate of errors", {"max_error_rate": 2}),
        (ConfigError, "only if a key names them", {"resume": True}),
    ):
        arguments: dict[str, Any] = {"rows": ROWS, **how}
        with pytest.raises(error, match=match):
            run(stub, output, **arguments)
    with pytest.raises(ModelmillError, match=r"There is no model 'stab'.*stub") as caught:
        backfill(connection(stub.url), TASK, "stab", ROWS, output=output, options=BackfillOptions())
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    nowhere = connection(f"http://127.0.0.1:{processes.free_port()}")
    with pytest.raises(ModelmillError, match="does not answer"):
        backfill(nowhere, TASK, "stub", ROWS, output=output, options=BackfillOptions(give_up_after_s=0.2))

    assert not output.exists()
    assert not stub.seen


def test_the_rows_of_a_program_are_taken_in_its_own_thread(stub: Stub, tmp_path: Path) -> None:
    threads = set()

    def rows() -> Iterator[dict[str, Any]]:
        for row in ROWS:
            threads.add(threading.get_ident())
            yield row

    run(stub, tmp_path, rows())

    assert_whole(tmp_path)
    assert threads == {threading.get_ident()}


def test_an_input_that_became_shorter_is_reported(stub: Stub, tmp_path: Path) -> None:
    stub.on_request = lambda asked: refused(403, "forbidden") if asked == "collect" else None
    with pytest.raises(ModelmillError, match="forbidden"):
        run(stub, tmp_path, key="rows")
    stub.on_request = lambda _: None

    with pytest.raises(ConfigError, match="fewer rows"):
        run(stub, tmp_path, ROWS[:5], key="rows", resume=True)


def test_a_run_inside_a_running_event_loop_works(stub: Stub, tmp_path: Path) -> None:
    async def notebook() -> Summary:
        return run(stub, tmp_path / "a")

    assert asyncio.run(notebook()).state == "complete"
    assert_whole(tmp_path / "a")


def test_a_canceled_run_is_resumed_without_running_anything_twice(stub: Stub, tmp_path: Path) -> None:
    resumed_at = 0

    async def canceled_after(count: int) -> None:
        nonlocal resumed_at
        enough = asyncio.Event()

        def note(stats: Stats) -> None:
            if stats.done >= count:
                enough.set()

        options = BackfillOptions(key="rows", resume=True, window=16, on_progress=note)
        work = asyncio.create_task(
            backfill_async(connection(stub.url), TASK, "stub", rows, output=tmp_path, options=options)
        )
        await enough.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        resumed_at = json.loads((tmp_path / "checkpoint.json").read_text())["complete"]

    rows = [{"id": number, "text": str(number)} for number in range(3000)]
    for count in (1, 1000):
        asyncio.run(canceled_after(count))
        assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "stopped"
        assert count <= resumed_at < 3000

    summary = run(stub, tmp_path, rows, key="rows", resume=True)

    assert_whole(tmp_path, 3000)
    assert summary.rows == 3000
    assert len(stub.by_key) == 3000
