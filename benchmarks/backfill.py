"""Backfills: images through kills, and a million rows in constant memory.

Run it by itself, ``python -m benchmarks.backfill``; it takes about as long as a million jobs do.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import redis
from PIL import Image

from benchmarks.report import Figure, Section, Table, hardware, markdown
from benchmarks.system import TASK, System, running, small_body
from modelmill import processes
from modelmill.settings import MIB

IMAGES, ROWS = 2_000, 1_000_000
KILLS = 3
CLIENT_MIB = 200.0
"""The memory that the client may take for any number of rows."""
SAMPLE_S = 0.2
NOTE = (
    "Each row was found once in the output, with its own result. Seconds are those of all starts together, "
    "with what starting takes. Valkey's figure is the growth of `used_memory` over the run."
)
CLASSES = "cat,dog,bird,car,cup of coffee"


@dataclass(slots=True)
class Backfill:
    """The measurements of one backfill, over all its processes."""

    seconds: float = 0.0
    client_mib: float = 0.0
    """The most that one of its processes held, by VmHWM."""
    store_mib: float = 0.0
    """The most that the server said it uses, less what it used before."""
    starts: int = 0


def measure(images: int, rows: int, seed: int) -> Section:
    """Both backfills, each on a system of its own; fails if a row is missing or there twice."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="modelmill-backfill-") as name:
        folder = Path(name)
        seen = []
        if images:
            make_photos(folder / "photos", images, chance)
            options = ("--input", str(folder / "photos" / "**" / "*.jpg"), "--set", f"classes={CLASSES}")
            with running("cpu", "conse-lite0") as system:
                run = backfill(system, "conse-lite0", folder / "images", options, images, chance, KILLS)
            seen.append((f"photos, conse-lite0, {KILLS} times killed", images, run))
        if rows:
            write_rows(folder / "rows.jsonl", rows)
            with running("cpu", "noop") as system:
                given = ("--input", str(folder / "rows.jsonl"))
                seen.append(("rows, noop", rows, backfill(system, "noop", folder / "rows", given, rows)))
    table = Table(
        "Backfills",
        ("what", "rows", "seconds", "rows/s", "starts", "client, MiB", "Valkey, MiB"),
        [
            [what, count, run.seconds, count / run.seconds, run.starts, run.client_mib, run.store_mib]
            for what, count, run in seen
        ],
    )
    figures = [
        Figure(f"most memory of the client, {count:,} {what}", run.client_mib, "MiB", CLIENT_MIB, False)
        for what, count, run in seen
    ]
    return Section(
        "Backfills",
        [table],
        figures,
        [NOTE],
    )


def make_photos(folder: Path, count: int, chance: random.Random) -> None:
    """Crops and rotations of the sample photo, 256 × 256, no two alike, in ten folders."""
    with Image.open(io.BytesIO((files("modelmill") / "data" / "chelsea.jpg").read_bytes())) as opened:
        photo = opened.convert("RGB")
    for number in range(count):
        side = chance.randrange(180, min(photo.size))
        left, top = (chance.randrange(length - side + 1) for length in photo.size)
        crop = photo.crop((left, top, left + side, top + side)).rotate(chance.uniform(-30, 30))
        path = folder / f"{number % 10}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.resize((256, 256)).save(path, "JPEG", quality=85)


def write_rows(path: Path, count: int) -> None:
    """Small rows, each with an id of its own."""
    fields = small_body().decode().removeprefix("{")
    with path.open("w", encoding="ascii") as file:
        for number in range(count):
            file.write(f'{{"id": {number}, {fields}\n')


def backfill(
    system: System,
    model: str,
    output: Path,
    options: Sequence[str],
    rows: int,
    chance: random.Random | None = None,
    kills: int = 0,
) -> Backfill:
    """Runs ``modelmill backfill`` until it is through, killed on the way, and looks at what it wrote."""
    seen = Backfill()
    command = processes.python(
        *("-m", "modelmill_cli", "backfill", TASK, model, "--url", system.url, "--output", str(output)),
        *("--resume", "--json", *options),
    )
    places = sorted((chance or random).sample(range(1, int(rows * 0.9)), kills))
    store = redis.Redis.from_url(system.redis_url)
    before = int(store.info("memory")["used_memory"])
    started = time.perf_counter()
    for place in (*places, None):
        seen.starts += 1
        process = processes.start(command)
        _watch(process, output, place, seen, store, before)
    seen.seconds = time.perf_counter() - started
    store.close()
    check(output, rows)
    return seen


def _watch(
    process: subprocess.Popen[bytes],
    output: Path,
    kill_at: int | None,
    seen: Backfill,
    store: redis.Redis,
    before: int,
) -> None:
    """Looks at memory until the process has ended; kills it once so many rows are done."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
            high = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            # There is no such file on this system, or the process has just ended.
            high = _resident_mib(process.pid)
        seen.client_mib = max(seen.client_mib, high)
        used = int(store.info("memory")["used_memory"])
        seen.store_mib = max(seen.store_mib, (used - before) / MIB)
        if kill_at is not None and _done(output) >= kill_at:
            process.kill()
        time.sleep(SAMPLE_S)
    if process.returncode not in (0, -9):
        raise RuntimeError(f"the backfill ended with {process.returncode}")


def _resident_mib(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss / MIB)
    except psutil.Error:
        return 0.0


def _done(output: Path) -> int:
    try:
        return int(json.loads((output / "checkpoint.json").read_bytes())["complete"])
    except FileNotFoundError:
        return 0


def check(output: Path, rows: int) -> None:
    """Raises if a row is not there exactly once, complete, with its own result."""
    times = bytearray(rows)
    for line in _lines(output):
        times[line["row"]] += 1
        assert line["status"] == "complete", line
        assert line["input"].get("id", line["row"]) == line["row"], line
        assert abs(sum(line["result"]["probabilities"]) - 1) < 1e-3, line
    assert times.count(1) == rows, f"{times.count(0)} rows are missing, {rows - times.count(1)} are wrong"
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert (manifest["state"], manifest["rows"]) == ("complete", rows), manifest


def _lines(output: Path) -> Iterator[dict[str, Any]]:
    for shard in sorted(output.glob("part-*.jsonl")):
        with shard.open("rb") as file:
            yield from map(json.loads, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    print(f"{hardware()}; seed {given.seed}\n")
    print(markdown([measure(given.images, given.rows, given.seed)]))
