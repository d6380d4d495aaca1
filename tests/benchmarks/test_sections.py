"""The benchmark's own parts run: small counts, no targets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from tests.support.paths import REPOSITORY


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--rounds", "1", "--scale", "0.01", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.exhaustive
def test_idle_latency_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "bench.md"
    done = bench("idle", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "| idle: time added over the direct call, p50 |" in output.read_text()
    assert output.read_text() in done.stdout


def test_overhead_is_measured_and_absent_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PEERS_PYTHON", "/nowhere/python")
    done = bench("overhead")
    assert done.returncode == 0, done.stderr
    assert "| modelmill, Prefer: wait |" in done.stdout
    assert "litserve is not installed here, and left out." in done.stdout


def test_without_a_gpu_the_section_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: `python -m benchmarks gpu` measures it")
    done = bench("gpu")
    assert done.returncode == 0, done.stderr
    assert "no GPU" in done.stdout


def test_an_unknown_section_is_named_beside_those_there_are() -> None:
    done = bench("speed")
    assert done.returncode == 2
    assert "overhead" in done.stderr


@pytest.mark.exhaustive
def test_two_checkouts_take_turns(tmp_path: Path) -> None:
    before = tmp_path / "before"
    (before / ".venv").mkdir(parents=True)
    (before / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (before / "benchmarks").symlink_to(REPOSITORY / "benchmarks")

    section = compare.compare([before, before], rounds=1, jobs=60)

    assert [table.title for table in section.tables] == [f"{load}, 60 jobs a turn" for load in compare.LOADS]
    for table in section.tables:
        for _, old, new, ratio in table.rows:
            assert float(old) > 0
            assert float(ratio) == pytest.approx(float(new) / float(old))
