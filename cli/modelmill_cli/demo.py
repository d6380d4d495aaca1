"""`modelmill demo`: sends a photograph through the whole system."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from modelmill.client import Client, Job
from modelmill.folders import ensure_temporary_folder
from modelmill.settings import get_settings
from modelmill_cli.console import err, out
from modelmill_cli.jobs import result_table
from modelmill_cli.options import set_environment
from modelmill_cli.stack import Stack, open_log

TASK, MODEL = "zero-shot-image-classification", "conse-lite0"
CLASSES = ["cat", "dog", "bird", "car", "cup of coffee", "rocket", "flower", "house", "horse", "person"]
TIMEOUT_S = 600.0


def run_demo() -> int:
    """Starts everything in a temporary folder and classifies a photo. Returns 0 if the job completes."""
    photo = Path(str(files("modelmill") / "data" / "chelsea.jpg"))
    started = time.monotonic()

    def say(line: str) -> None:
        err.say((f"{time.monotonic() - started:6.1f} s", "dim"), f"  {line}")

    ensure_temporary_folder(get_settings().cache_dir)
    get_settings.cache_clear()  # the next line sets another folder
    with tempfile.TemporaryDirectory(prefix="modelmill-demo-") as folder:
        set_environment(data_dir=folder)
        log_path = Path(folder) / "demo.log"
        with open_log(log_path) as log:
            try:
                with (
                    Stack(get_settings(), "127.0.0.1", 0, "cpu", say=say, log=log) as stack,
                    Client(stack.url) as client,
                ):
                    say(f"submitting {photo.name}, a photo of a cat, to {TASK}/{MODEL}")
                    job = client.submit(TASK, MODEL, image=photo, classes=CLASSES)
                    document = _follow(client, job, say)
            except Exception:
                err.say(log_path.read_text(errors="replace")[-4000:])
                raise
        if document["status"] != "complete":
            err.say(log_path.read_text(errors="replace")[-4000:])
    say("stopped")
    if document["status"] != "complete":
        out.print_json(data=document)
        return 1
    table = result_table(dict(document["result"]), CLASSES)
    if table is not None:
        out.print(table)
    out.print_json(data=document["result"])
    return 0


def _follow(client: Client, job: Job, say: Callable[[str], None]) -> dict[str, Any]:
    """Polls the job and prints its status every few seconds: the first run makes ONNX files."""
    deadline = time.monotonic() + TIMEOUT_S
    said_at, pause_s = time.monotonic(), 0.01
    while time.monotonic() < deadline:
        if job.refresh().has_ended:
            return job.document
        if time.monotonic() - said_at > 3:
            said_at = time.monotonic()
            status = client.model_status(MODEL)["status"]
            note = (
                " (the first time it is converted to ONNX, which takes a while)"
                if status == "loading"
                else ""
            )
            say(f"the job is {job.status}, the model is {status}{note}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.5)
    raise TimeoutError(f"the job has not ended after {TIMEOUT_S:.0f} s")
