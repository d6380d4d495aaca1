"""A node's metrics: counted by real child processes, scraped over HTTP."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelmill import processes
from modelmill_worker import metrics

TASK = "image-classification"
COUNT = f"""
import sys
from modelmill_worker import metrics
assert "prometheus_client" not in sys.modules
metrics.model_loaded("m", 1.5)
metrics.batch_ran("{TASK}", "m", 8, 0.02)
metrics.job_ended("{TASK}", "m", "complete", 0.3)
metrics.job_ended("{TASK}", "m", "failed", 20.0)
metrics.model_evicted("m")
"""
STAY = "print('counted', flush=True)\nsys.stdin.read()\n"


class Node:
    """The parent of a node. Its children are real processes."""

    def __init__(self, cleanup: ExitStack) -> None:
        self.folder = metrics.prepare_directory()
        server = metrics.start_server(0)
        assert server is not None
        cleanup.callback(server.close)
        self._url = f"http://127.0.0.1:{server.port}/metrics"
        self._cleanup = cleanup

    def child(self, code: str = COUNT) -> subprocess.Popen[bytes]:
        """Starts a child. On return it has counted, and is alive."""
        command = processes.python("-c", code + STAY)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._cleanup.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"counted\n"
        return process

    def scrape(self) -> dict[tuple[str, str], float]:
        """Values by name and by the label ``le`` or ``status``, if there is one."""
        text = httpx.get(self._url).raise_for_status().text
        return {
            (sample.name, sample.labels.get("le") or sample.labels.get("status") or ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Node]:
    monkeypatch.setenv(metrics.DIRECTORY_VARIABLE, "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ExitStack() as cleanup:
        yield Node(cleanup)


def test_what_a_child_counts_is_served(node: Node) -> None:
    assert node.scrape() == {}
    node.child()
    samples = node.scrape()
    assert samples["modelmill_node_jobs_total", "complete"] == 1
    assert samples["modelmill_node_jobs_total", "failed"] == 1
    assert samples["modelmill_queue_wait_seconds_count", ""] == 2
    assert samples["modelmill_queue_wait_seconds_sum", ""] == pytest.approx(20.3)
    assert samples["modelmill_queue_wait_seconds_bucket", "0.5"] == 1
    assert samples["modelmill_inference_seconds_sum", ""] == pytest.approx(0.02)
    assert samples["modelmill_batch_size_bucket", "4.0"] == 0
    assert samples["modelmill_batch_size_bucket", "8.0"] == 1
    assert samples["modelmill_model_loads_total", ""] == 1
    assert samples["modelmill_model_load_seconds_total", ""] == pytest.approx(1.5)
    assert samples["modelmill_model_evictions_total", ""] == 1


def test_a_killed_child_loses_no_count(node: Node) -> None:
    for number in range(1, 4):
        child = node.child()
        child.kill()
        child.wait()
        before = node.scrape()
        metrics.child_died(child.pid)
        gauges = {("modelmill_held_results", ""): 0.0, ("modelmill_held_result_bytes", ""): 0.0}
        assert node.scrape() | gauges == before
        assert before["modelmill_node_jobs_total", "complete"] == number
        assert before["modelmill_queue_wait_seconds_bucket", "+Inf"] == 2 * number
    # However many die, one set of files is left.
    assert sorted(file.name for file in node.folder.iterdir()) == ["counter_0.db", "histogram_0.db"]


def test_a_child_that_was_killed_while_it_made_its_files_breaks_nothing(node: Node) -> None:
    node.child()
    before = node.scrape()
    (node.folder / "counter_999999.db").touch()
    (node.folder / "histogram_999999.db").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\x7f")
    assert node.scrape() == before
    metrics.child_died(999999)
    assert node.scrape() == before
    assert not list(node.folder.glob("*_999999.db"))


def test_held_results_are_counted_while_their_process_lives(node: Node) -> None:
    child = node.child(COUNT + "metrics.results_held(3, 700)\n")
    alive = node.scrape()
    child.kill()
    child.wait()
    metrics.child_died(child.pid)

    assert alive["modelmill_held_results", ""] == 3
    assert alive["modelmill_held_result_bytes", ""] == 700
    assert ("modelmill_held_results", "") not in node.scrape()


def test_memory_of_a_dead_child_is_not_in_use(node: Node) -> None:
    use = """
class cuda:
    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    memory_allocated = staticmethod(lambda: 1000)
    memory_reserved = staticmethod(lambda: 3000)
sys.modules["torch"] = sys.modules[__name__]
metrics.batch_ran("t", "m", 1, 0.1)
"""
    child = node.child(COUNT + use)
    text = httpx.get(node._url).text
    assert 'modelmill_gpu_memory_bytes{kind="allocated"} 1000.0' in text
    assert 'modelmill_gpu_memory_bytes{kind="reserved"} 3000.0' in text
    child.kill()
    child.wait()
    metrics.child_died(child.pid)
    assert "modelmill_gpu_memory_bytes{" not in httpx.get(node._url).text


def test_a_port_that_is_taken_is_no_reason_not_to_work(node: Node) -> None:
    port = int(httpx.URL(node._url).port or 0)
    assert metrics.start_server(port) is None


def test_without_a_folder_nothing_is_counted(tmp_path: Path) -> None:
    code = COUNT + "assert 'prometheus_client' not in sys.modules"
    environment = {name: text for name, text in os.environ.items() if name != metrics.DIRECTORY_VARIABLE}
    subprocess.run(processes.python("-c", code), env=environment, check=True)


def test_a_folder_that_vanished_fails_no_job(tmp_path: Path) -> None:
    environment = os.environ | {metrics.DIRECTORY_VARIABLE: str(tmp_path / "gone")}
    done = subprocess.run(processes.python("-c", COUNT), env=environment, check=True, capture_output=True)
    assert b"was not counted" in done.stderr
