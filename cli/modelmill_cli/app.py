"""The commands of ``modelmill``. Each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypeVar

import typer

from modelmill.errors import ConfigError, ModelmillError
from modelmill_cli.console import err

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Takes AI jobs over HTTP, queues them, and grinds them in batches on workers.",
)

Url = Annotated[str, typer.Option("--url", envvar="MODELMILL_URL", help="Where the API answers.")]
ModelsFile = Annotated[
    Path | None, typer.Option(help="Your own models, a TOML file; see docs/models.md.", dir_okay=False)
]
RedisUrl = Annotated[str | None, typer.Option(help="The Redis or Valkey that keeps the jobs.")]
Devices = Annotated[
    str, typer.Option(help="all, GPU numbers such as 0,1, cpu, or cpu:2 for two CPU workers.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="The store of the `modelmill up` that runs over this folder.")
]
Preload = Annotated[
    str, typer.Option(envvar="MODELMILL_PRELOAD", help="Models to load at start, separated by commas.")
]
DEFAULT_URL = "http://127.0.0.1:8000"


def for_people(command: Callable[P, R]) -> Callable[P, R]:
    """Errors that were raised on purpose are shown as a sentence, not as a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ModelmillError as error:
            err.say((error.code.value, "red"), f": {error.message}")
            for field in error.fields[1:]:
                err.say(f"  {field.field}: {field.message}")
        except (ConfigError, TimeoutError, OSError) as error:
            err.say(("error", "red"), f": {error}")
        raise typer.Exit(1)

    return wrapped


def set_environment(**values: object) -> None:
    """Options become settings of this process and of those that it starts."""
    for name, value in values.items():
        if value not in (None, ""):
            os.environ[f"MODELMILL_{name.upper()}"] = str(value)


@app.command()
@for_people
def up(
    port: Annotated[int | None, typer.Option(help="Port of the API; 8000 when not set.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the API; loopback when not set.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where jobs are kept between runs.")] = None,
    devices: Devices = "all",
    models_file: ModelsFile = None,
    preload: Preload = "",
) -> None:
    """Run everything in this terminal: job store, API and worker. Ctrl-C stops all three."""
    from modelmill_cli.stack import run_stack

    set_environment(
        port=port, host=host, data_dir=data_dir, models_file=models_file and models_file.resolve()
    )
    raise typer.Exit(run_stack(devices, preload))


@app.command()
@for_people
def api(
    port: Annotated[int | None, typer.Option(help="Port; 8000 when not set.")] = None,
    host: Annotated[str | None, typer.Option(help="Address; loopback when not set.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer; 1 when not set.")] = None,
    redis_url: RedisUrl = None,
    models_file: ModelsFile = None,
) -> None:
    """Run the HTTP API."""
    import uvicorn

    from modelmill.logs import configure_logging
    from modelmill.processes import allow_many_files
    from modelmill.settings import get_settings
    from modelmill_api.media import check_media_settings
    from modelmill_api.middleware.auth import keys_are_on
    from modelmill_cli.keys import hint_at_first_key
    from modelmill_cli.models_file import check_models_file

    set_environment(
        port=port,
        host=host,
        api_workers=workers,
        redis_url=redis_url,
        models_file=models_file and models_file.resolve(),
    )
    settings = get_settings()
    configure_logging(settings.log_level)
    # Before anything is started, where its sentence reaches the terminal.
    check_media_settings(settings)
    check_models_file(settings.models_file)
    if keys_are_on(settings):
        hint_at_first_key(settings)
    allow_many_files()
    uvicorn.run(
        "modelmill_api.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        workers=settings.api_workers,
        http="modelmill_api.server:OnePacketProtocol",
    )


@app.command()
@for_people
def worker(
    devices: Devices = "all",
    models: Annotated[
        str, typer.Option(envvar="MODELMILL_WORKER_MODELS", help="Serve only these models.")
    ] = "",
    tasks: Annotated[str, typer.Option(envvar="MODELMILL_WORKER_TASKS", help="Serve only these tasks.")] = "",
    preload: Preload = "",
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    models_file: ModelsFile = None,
    name: Annotated[str | None, typer.Option(help="Base of the nodes' names.")] = None,
) -> None:
    """Run workers: one node a device, supervised. Those beside a `modelmill up` join it."""
    from modelmill.blobs import BlobStore
    from modelmill.logs import configure_logging
    from modelmill.settings import get_settings
    from modelmill_cli.joining import join_store
    from modelmill_cli.models_file import check_models_file
    from modelmill_worker.processes.supervisor import Supervisor, plan_devices

    set_environment(redis_url=redis_url, models_file=models_file and models_file.resolve())
    join_store(redis_url, data_dir)
    settings = get_settings()
    configure_logging(settings.log_level)
    check_models_file(
        settings.models_file, has_runners=True, loads=True, models=_split(models), tasks=_split(tasks)
    )
    BlobStore.from_settings(settings)
    supervisor = Supervisor(
        settings,
        plan_devices(devices),
        models=_split(models),
        tasks=_split(tasks),
        preload=_split(preload),
        name=name,
    )
    raise typer.Exit(supervisor.run())


@app.command()
@for_people
def submit(
    task: Annotated[str, typer.Argument(help="For example zero-shot-image-classification.")],
    model: Annotated[str, typer.Argument(help="For example conse-lite0.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="An image file; several make a batched job.", exists=True)
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; several make a batched job.")] = None,
    classes: Annotated[str, typer.Option(help="Classes, separated by commas.")] = "",
    config: Annotated[str, typer.Option(help="The task's config, as JSON.")] = "",
    lane: Annotated[str, typer.Option(help="interactive, normal or bulk.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result.")] = False,
    timeout_s: Annotated[float, typer.Option(help="How long to wait, in seconds.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a job."""
    from modelmill_cli.jobs import submit_job

    submit_job(
        url, task, model, images=image or [], texts=text or [], classes=_split(classes), config=config,
        lane=lane, timeout_s=timeout_s if wait else None, as_json=as_json,
    )  # fmt: skip


@app.command()
@for_people
def job(
    id: Annotated[str, typer.Argument(help="The job's id.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    timeout_s: Annotated[float, typer.Option(help="How long to wait, in seconds.")] = 600.0,
    url: Url = DEFAULT_URL,
) -> None:
    """Show a job as JSON."""
    from modelmill_cli.jobs import show_job

    show_job(url, id, timeout_s if wait else None)


@app.command()
@for_people
def run(
    task: Annotated[str, typer.Argument(help="For example text-embedding.")],
    model: Annotated[str, typer.Argument(help="A model's name, its hub id, or a folder.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUE...",
            help="The task's fields: text=hello, image=@cat.jpg for a file, config.top_k=3 within another, "
            "table:={…} for JSON. Given several times, a field is a list, or asks for several items.",
        ),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="The CPU when not set.")] = None,
    models_file: ModelsFile = None,
) -> None:
    """Ask a model in this process, without a server, and print its answer as JSON."""
    from modelmill_cli.run import run_task

    set_environment(models_file=models_file, device=device)
    run_task(task, model, fields or [])


@app.command()
@for_people
def tasks(task: Annotated[str, typer.Argument(help="Show this one's fields.")] = "") -> None:
    """List the tasks, or the fields of one."""
    from modelmill_cli.run import list_tasks, show_task

    show_task(task) if task else list_tasks()


models_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")


@models_app.callback()
@for_people
def models(
    context: typer.Context,
    every: Annotated[
        bool, typer.Option("--all", help="What this machine could run of the catalogue; asks no server.")
    ] = False,
    task: Annotated[str, typer.Option(help="With --all: only those that answer this task.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --all: print JSON only.")] = False,
    models_file: ModelsFile = None,
    url: Url = DEFAULT_URL,
) -> None:
    """List the models, and where each stands on the server if one answers."""
    set_environment(models_file=models_file)
    if context.invoked_subcommand is not None:
        return
    from modelmill.settings import get_settings
    from modelmill_cli.models_file import check_models_file

    check_models_file(get_settings().models_file, has_runners=every or as_json or bool(task))
    if every or as_json or task:
        from modelmill_cli.models import show_catalogue

        show_catalogue(task or None, as_json=as_json)
    else:
        from modelmill_cli.jobs import list_models

        list_models(url)


@models_app.command()
@for_people
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names, aliases or hub ids.")],
    models_file: ModelsFile = None,
) -> None:
    """Fetch the weights of models from the hub, so that loading them asks for nothing more."""
    from modelmill_cli.models import pull_models

    set_environment(models_file=models_file)
    pull_models(names)


keys_app = typer.Typer(no_args_is_help=True, help="API keys: who may use the API, and how much.")
app.add_typer(keys_app, name="keys")


@keys_app.command("create")
@for_people
def create_key(
    name: Annotated[str, typer.Argument(help="Who it is for.")],
    admin: Annotated[
        bool, typer.Option("--admin", help="It may start and stop models, and see workers and metrics.")
    ] = False,
    lanes: Annotated[
        str, typer.Option(help="Lanes it may use, such as interactive,normal; all, if none.")
    ] = "",
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs of it that may run or wait.")] = None,
    jobs_per_minute: Annotated[int | None, typer.Option(min=1, help="Jobs it may submit a minute.")] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, help="Jobs that may come at once; a minute's, if not given.")
    ] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the token.")] = False,
) -> None:
    """Make a key and print its token, once."""
    from modelmill_cli.keys import create_key as create

    create(
        name, is_admin=admin, lanes=_split(lanes), max_jobs=max_jobs, jobs_per_minute=jobs_per_minute,
        burst=burst, redis_url=redis_url, data_dir=data_dir, quiet=quiet,
    )  # fmt: skip


@keys_app.command("list")
@for_people
def list_keys(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """List the keys. Their tokens are shown to nobody again."""
    from modelmill_cli.keys import list_keys as show

    show(redis_url=redis_url, data_dir=data_dir, as_json=as_json)


@keys_app.command("revoke")
@for_people
def revoke_key(
    id_or_name: Annotated[str, typer.Argument(metavar="ID|NAME", help="The key.")],
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
) -> None:
    """End a key for good. Its jobs run on, but nobody can read them any more."""
    from modelmill_cli.keys import revoke_key as revoke

    revoke(id_or_name, redis_url=redis_url, data_dir=data_dir)


@app.command()
@for_people
def check(
    package: Annotated[str, typer.Argument(help="An installed plugin, by the name that pip knows.")],
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where each check failed.")] = False,
) -> None:
    """Check that a plugin's runners keep their contract, on the specimens that it brings."""
    from modelmill_cli.check import check_package

    raise typer.Exit(check_package(package, with_traceback=traceback))


@app.command()
@for_people
def demo() -> None:
    """Send a real photograph through the whole system, on this machine, and stop it again."""
    from modelmill_cli.demo import run_demo

    raise typer.Exit(run_demo())


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


# Those register themselves, with what stands above.
from modelmill_cli import backfill_command, client_commands  # noqa: E402, F401
