"""How long things take from nothing: commands, the API, a worker to its first result, a model's load."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import redis

from benchmarks.report import Cell, Figure, Options, Section, Table, markdown
from benchmarks.system import MODELS
from modelmill import processes
from modelmill.broker import Bells, make_celery
from modelmill.embedded import EmbeddedServer
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, Submission, WorkerStore, keys
from modelmill_backends.device import available_cores
from modelmill_tasks.registry import find_task

LOADED = ("conse-lite0", "efficientnet-lite0", "minilm")
LOAD_ROUNDS = 3
"""Rounds of loads for each round of starts: loads are shorter, and their ratios are close to 1."""
GIVE_UP_S = 60.0

RUNTIMES = "import json, sys, time, numpy, onnxruntime, tokenizers\n"
"""Both kinds of load begin with these imports, before the clock starts."""

OPENED = (
    RUNTIMES
    + """
opened = []

def spied(kind, function):
    def call(path, *args, **kwargs):
        opened.append((kind, str(path)))
        return function(path, *args, **kwargs)
    return call

class Tokenizer:
    from_file = staticmethod(spied("tokenizer", tokenizers.Tokenizer.from_file))

onnxruntime.InferenceSession = spied("session", onnxruntime.InferenceSession)
numpy.load = spied("array", numpy.load)
tokenizers.Tokenizer = Tokenizer
from modelmill_backends.loader import load
load(sys.argv[1])
print(json.dumps(opened))
"""
)
"""Prints what a load opens, so that the bare load opens the very same files."""

OURS = (
    RUNTIMES
    + """
import tempfile
from pathlib import Path
from modelmill_backends.device import current_device, free_memory
from modelmill.catalogue import Catalogue
from modelmill.settings import get_settings
from modelmill_worker.models.cache import ModelCache
from modelmill_worker.child_state import Recorder

settings = get_settings()
recorder = Recorder(Path(tempfile.mkdtemp()))
recorder.start_file()
models = ModelCache(
    Catalogue.load(settings.models_file), current_device(), settings, recorder, lambda: None
)

def once():
    models.unload(sys.argv[1])
    free_memory()
    started = time.perf_counter()
    models.get(sys.argv[1])
    return time.perf_counter() - started

print(json.dumps([once() for _ in range(6)]))
"""
)
"""Prints the seconds of a worker's first load and of further ones.

The clock starts where a bell finds a waiting child, which has finished its own start.
"""

ALONE = (
    RUNTIMES
    + """
from modelmill_backends.loader import load
started = time.perf_counter()
load(sys.argv[1])
print(time.perf_counter() - started)
"""
)
"""Prints the seconds of a load in a process that has done nothing else before."""

BARE = (
    RUNTIMES
    + """
from modelmill_backends.device import free_memory

def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[2])
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

OPEN = {"session": session, "tokenizer": tokenizers.Tokenizer.from_file, "array": numpy.load}
files = json.loads(sys.argv[1])

def once():
    free_memory()  # as a worker does when it evicts a model: pages that were freed must be asked for again
    started = time.perf_counter()
    kept = [OPEN[kind](path) for kind, path in files]
    return time.perf_counter() - started

print(json.dumps([once() for _ in range(6)]))
"""
)
"""The same with the runtimes alone, and the options of ``modelmill_backends.onnx.session``."""
NOTE = (
    "The figures are medians of the rounds, after one round that warms the caches of the disk, of the "
    "models and of compiled Python. Each round starts every process anew. A load is the worker's: "
    "`ModelCache.get`, in a process that has made the cache as a worker's child does when it starts, "
    "without a store to announce to. A bare load opens the same files with the same options in a process "
    "of its own. Both have imported numpy, onnxruntime and tokenizers before, and both free memory first, "
    "as an eviction does. Alone is `modelmill.load` in a process that has done nothing else: it also "
    "reads the catalogue and the settings, and finds and imports the runner."
)


def measure(options: Options) -> Section:
    """Start times, and loads against bare loads."""
    with _compiled_python():
        starts = _starts(options.rounds)
        loads, figures = _loads(options.rounds)
    return Section("Start", [starts, loads], figures, [NOTE])


@contextmanager
def _compiled_python() -> Iterator[None]:
    """Processes keep compiled modules, as after an installation, also where the environment forbids it."""
    kept = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="modelmill-bench-") as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(kept)


def _starts(rounds: int) -> Table:
    found: dict[str, list[float]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="modelmill-bench-") as folder,
        EmbeddedServer(Path(folder)) as server,
        (Path(folder) / "log").open("ab") as log,
    ):
        environment = {"MODELMILL_REDIS_URL": server.url, "MODELMILL_MODELS_FILE": str(MODELS)}
        start = partial(processes.start, environment=environment, log=log)
        steps: dict[str, Callable[[], float]] = {
            "`python -c pass`, for comparison": lambda: _until_it_ends(["-c", "pass"]),
            "`modelmill --help`": lambda: _until_it_ends(["-m", "modelmill_cli", "--help"]),
            "API, to the first 200 of /health/live": lambda: _api(start),
            "worker, to the first result of a queued job, noop": lambda: _worker(start, server.url, "noop"),
            "the same, conse-lite0": lambda: _worker(start, server.url, "conse-lite0"),
        }
        for _ in range(rounds + 1):
            for name, step in steps.items():
                found[name].append(step())
    rows = [(name, statistics.median(seconds[1:]) * 1000) for name, seconds in found.items()]
    return Table("From the start of a process", ("what", "p50 ms"), rows)


def _until_it_ends(arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(processes.python(*arguments), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _api(start: Callable[[Sequence[str]], subprocess.Popen[bytes]]) -> float:
    port = processes.free_port()

    def lives() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=5):
            return True
        return False

    return _until(lives, lambda: start(processes.python("-m", "modelmill_cli", "api", "--port", str(port))))


def _worker(start: Callable[[Sequence[str]], subprocess.Popen[bytes]], url: str, model: str) -> float:
    settings = Settings(redis_url=url)
    task = find_task("zero-shot-image-classification")
    job = Submission(str(uuid.uuid4()), task.name, model, json.dumps(task.example.input).encode())

    async def submit() -> None:
        api = ApiStore(settings)
        await api.submit(job)
        await api.close()

    asyncio.run(submit())
    store = WorkerStore(settings)
    bells = Bells(make_celery(settings), store.release_bell)
    bells.ring(model)
    bells.close()

    client = redis.Redis.from_url(url)

    def ended() -> bool:
        status = client.hget(keys.JOB + job.id, "status")
        if status is None or not Status(cast("bytes", status).decode()).is_terminal:
            return False
        assert status == b"complete", client.hget(keys.JOB + job.id, "error")
        return True

    command = processes.python("-m", "modelmill_cli", "worker", "--devices", "cpu")
    seconds = _until(ended, lambda: start(command))
    store.close()
    client.close()
    return seconds


def _until(true: Callable[[], bool], start: Callable[[], subprocess.Popen[bytes]]) -> float:
    """Seconds from the start of a process until something is true; then stops it."""
    started = time.perf_counter()
    process = start()
    try:
        while not true():
            if process.poll() is not None or time.perf_counter() - started > GIVE_UP_S:
                raise RuntimeError("a process that is measured ended, or does not get ready")
            time.sleep(0.003)
        return time.perf_counter() - started
    finally:
        processes.stop(process, 40)


def _loads(rounds: int) -> tuple[Table, list[Figure]]:
    rows: list[Sequence[Cell]] = []
    figures = []
    # The supervisor gives a node on the CPU as many threads as there are cores.
    threads = str(available_cores())
    files = {model: json.dumps(_print_of(OPENED, model)) for model in LOADED}
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for _ in range(LOAD_ROUNDS * rounds + 1):
        for model in LOADED:
            first, *again = _print_of(OURS, model)
            bare, *bare_again = _print_of(BARE, files[model], threads)
            alone = _print_of(ALONE, model)
            again_s, bare_again_s = statistics.median(again), statistics.median(bare_again)
            found[model].append((first, bare, again_s, bare_again_s, alone))
    for model, times in found.items():
        first, bare, again, bare_again, alone = zip(*times[1:], strict=True)
        ratio, ratio_again = _ratio(first, bare), _ratio(again, bare_again)
        medians = [statistics.median(each) * 1000 for each in (first, bare, again, bare_again, alone)]
        rows.append([model, *medians[:2], ratio, *medians[2:4], ratio_again, medians[4], _ratio(alone, bare)])
        name = f"loading {model} against a bare load"
        figures.append(Figure(f"{name}, a worker's first", ratio, "times", 1.1, at_least=False))
        figures.append(Figure(f"{name}, again", ratio_again, "times", 1.1, at_least=False))
    columns = (
        *("model", "first, ms", "bare, ms", "times", "again, ms", "bare again, ms", "times"),
        *("alone, ms", "times the first bare"),
    )
    return Table("Loading a model whose files are in the cache", columns, rows), figures


def _ratio(ours: Sequence[float], bare: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, bare, strict=True))


def _print_of(program: str, *arguments: str) -> Any:
    command = processes.python("-c", program, *arguments)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(markdown([measure(Options())]))
