"""Commands that start servers: ``up``, ``api`` and ``worker``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from modelmill_cli.options import DataDir, ModelsFile, RedisUrl, set_environment, show_errors, split

Devices = Annotated[
    str, typer.Option(help="all, GPU numbers such as 0,1, cpu, or cpu:2 for two CPU workers.")
]
Preload = Annotated[
    str, typer.Option(envvar="MODELMILL_PRELOAD", help="Models to load at start, separated by commas.")
]


@show_errors
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


@show_errors
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
    from modelmill.processes import allow_many_files, on_hangup
    from modelmill.settings import get_settings
    from modelmill.start_checks import check_start
    from modelmill_api.checks import check_settings
    from modelmill_api.middleware.auth import keys_are_on
    from modelmill_cli.addresses import free_port_of
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
    # Checked before the server starts, so that the error is the last thing on the terminal.
    check_settings(settings)
    check_models_file(settings.models_file)
    free_port_of(settings.host, settings.port)
    check_start(settings)
    if keys_are_on(settings):
        hint_at_first_key(settings)
    allow_many_files()
    # As SIGTERM: requests in progress are answered. Of several processes, uvicorn starts each again instead.
    on_hangup(lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
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
        timeout_keep_alive=settings.keep_alive_s,
        http="modelmill_api.server:ApiProtocol",
        ws="none",
    )


@show_errors
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
    """Run workers: one supervised node per device. They join a `modelmill up` that runs here."""
    from modelmill.logs import configure_logging
    from modelmill.settings import get_settings
    from modelmill.start_checks import check_start
    from modelmill_cli.joining import join_store
    from modelmill_cli.models_file import check_models_file
    from modelmill_worker.checks import check_settings
    from modelmill_worker.processes.supervisor import Supervisor, plan_devices

    set_environment(redis_url=redis_url, models_file=models_file and models_file.resolve())
    join_store(redis_url, data_dir)
    settings = get_settings()
    configure_logging(settings.log_level)
    check_models_file(
        settings.models_file, has_runners=True, loads=True, models=split(models), tasks=split(tasks)
    )
    check_settings(settings)
    check_start(settings)
    supervisor = Supervisor(
        settings,
        plan_devices(devices),
        models=split(models),
        tasks=split(tasks),
        preload=split(preload),
        name=name,
    )
    raise typer.Exit(supervisor.run())
