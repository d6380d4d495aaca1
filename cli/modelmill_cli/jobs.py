"""The commands that ask a server: all commands on jobs, and ``models``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from modelmill.catalogue import Catalogue
from modelmill.client import Client, ConnectionFailedError, NotFoundError
from modelmill.errors import ConfigError
from modelmill.settings import get_settings
from modelmill.states import ModelPhase
from modelmill_cli.console import err, make_table, out

REQUESTS_AT_ONCE = 8


def submit_job(
    url: str,
    task: str,
    model: str,
    *,
    images: Sequence[Path],
    texts: Sequence[str],
    classes: Sequence[str],
    config: str,
    lane: str,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Submits a job, batched if a field has several values. Waits for its end if ``timeout_s`` is set."""
    fields: dict[str, list[Any]] = {"image": list(images), "text": list(texts)}
    batched = any(len(values) > 1 for values in fields.values())
    inputs: dict[str, Any] = {
        name: values if batched else values[0] for name, values in fields.items() if values
    }
    if classes:
        inputs["classes"] = list(classes)
    if config:
        try:
            inputs["config"] = json.loads(config)
        except ValueError as error:
            raise ConfigError(f"--config is not JSON: {error}") from None
    if lane:
        inputs["lane"] = lane
    with connect(url) as client:
        job = client.submit(task, model, inputs, batched=batched)
        if timeout_s is None:
            out.print_json(data={"id": job.id, "status": job.status})
            return
        if not as_json:
            err.say(f"job {job.id}")
        job.wait(timeout_s)
    show_document(job.document, classes, as_json)


def connect(url: str) -> Client:
    """A client with few retries: a person at a terminal wants to see an error soon."""
    return Client(url, max_retries=2)


def show_document(document: dict[str, Any], classes: Sequence[str], as_json: bool) -> None:
    """Prints a job that has ended: its scores as a table, if it has scores, and its result as JSON."""
    if document["status"] != "complete":
        out.print_json(data=document)
        raise typer.Exit(1)
    show_warnings(document)
    result = document["result"]
    if not as_json and isinstance(result, dict):
        table = result_table(result, classes)
        if table is not None:
            out.print(table)
    out.print_json(data=result)


def show_warnings(document: dict[str, Any]) -> None:
    """Prints the warnings of a job to standard error, each on a line."""
    for warning in document.get("warnings") or ():
        item = f"item {warning['item']}: " if document.get("items") and warning["item"] is not None else ""
        err.say(("warning", "yellow"), f": {item}{warning['message']}")


def result_table(result: dict[str, Any], classes: Sequence[str]) -> Table | None:
    """The scores of a result as a table, best first; None if it has no scores."""
    if "probabilities" in result and len(classes) == len(result["probabilities"]):
        rows = list(zip(classes, result["probabilities"], strict=True))
    elif "classes" in result:
        rows = [(row["label"], row["score"]) for row in result["classes"]]
    else:
        return None
    table = make_table("class", "probability")
    table.columns[1].justify = "right"
    for label, score in sorted(rows, key=lambda row: -row[1]):
        table.add_row(str(label), f"{score:.4f}")
    return table


def show_job(url: str, job_id: str, timeout_s: float | None) -> None:
    with connect(url) as client:
        job = client.job(job_id)
        if timeout_s is not None:
            job.wait(timeout_s)
    show_warnings(job.document)
    out.print_json(data=job.document)


def list_jobs(url: str, limit: int, only: dict[str, Any]) -> None:
    """Prints the newest jobs as a table. ``only`` are arguments of ``Client.jobs``."""
    table = make_table("job", "task", "model", "status", "created")
    with connect(url) as client:
        for job in client.jobs(limit=limit, **only):
            created = str(job.document.get("created_at", ""))
            table.add_row(job.id, job.task, job.model, job.status, created)
    out.print(table)


def cancel_job(url: str, job_id: str) -> None:
    with connect(url) as client:
        job = client.job(job_id).cancel()
    out.print_json(data={"id": job.id, "status": job.status})


def delete_job(url: str, job_id: str) -> None:
    with connect(url) as client:
        client.job(job_id).delete()
    err.say(f"deleted {job_id}")


def follow_job(url: str, job_id: str, after: str | None) -> None:
    with connect(url) as client:
        for event in client.job(job_id).events(after):
            line = {"id": event.id, "type": event.type, "data": event.data}
            typer.echo(json.dumps(line, ensure_ascii=False))


def list_models(url: str) -> None:
    """Prints the models with their status on the server, models in use first.

    If no server answers, it prints the local catalogue.
    """
    catalogue = Catalogue.load(get_settings().models_file)
    tasks = {name: list(entry.tasks) for name, entry in catalogue.items()}
    statuses: dict[str, str] = {}
    try:
        with Client(url, timeout_s=5, max_retries=0) as client:
            names = client.models()
            with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
                statuses = dict(zip(names, pool.map(partial(_status, client), names), strict=True))
            for name in names:
                if name not in tasks:
                    tasks[name] = client.model_tasks(name)
    except ConnectionFailedError:
        err.say((f"no server answers at {url}: this is the local catalogue", "dim"))
    table = make_table("model", "status", "tasks", boxed=False)
    table.columns[1].no_wrap = True
    for name in sorted(tasks, key=lambda name: _rank(statuses.get(name, ""))):
        table.add_row(name, statuses.get(name, ""), ", ".join(tasks[name]))
    out.print(table)


def _status(client: Client, model: str) -> str:
    try:
        return str(client.model_status(model)["status"])
    except NotFoundError:
        return ""  # The only worker of this model has stopped since the models were listed.


def _rank(status: str) -> int:
    phases = list(ModelPhase)
    return phases.index(ModelPhase(status)) if status in phases else len(phases)
