"""The commands ``keys create``, ``keys list`` and ``keys revoke``."""

from __future__ import annotations

from typing import Annotated

import typer

from modelmill_cli.options import AsJson, DataDir, RedisUrl, show_errors, split

app = typer.Typer(no_args_is_help=True, help="API keys: who may use the API, and how much.")


@app.command("create")
@show_errors
def create_key(
    name: Annotated[str, typer.Argument(help="The person or program that gets the key.")],
    admin: Annotated[
        bool, typer.Option("--admin", help="The key may start and stop models, and see workers and metrics.")
    ] = False,
    lanes: Annotated[
        str, typer.Option(help="The lanes it may use, such as interactive,normal; all when not set.")
    ] = "",
    max_jobs: Annotated[
        int | None, typer.Option(min=1, help="How many of its jobs may wait or run at a time.")
    ] = None,
    jobs_per_minute: Annotated[
        int | None, typer.Option(min=1, help="How many jobs it may submit per minute.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, help="How many jobs may come at once; a minute's when not set.")
    ] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the token.")] = False,
) -> None:
    """Make a key and print its token, once."""
    from modelmill_cli.keys import create_key as create

    create(
        name, is_admin=admin, lanes=split(lanes), max_jobs=max_jobs, jobs_per_minute=jobs_per_minute,
        burst=burst, redis_url=redis_url, data_dir=data_dir, quiet=quiet,
    )  # fmt: skip


@app.command("list")
@show_errors
def list_keys(redis_url: RedisUrl = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the keys, without their tokens."""
    from modelmill_cli.keys import list_keys as show

    show(redis_url=redis_url, data_dir=data_dir, as_json=as_json)


@app.command("revoke")
@show_errors
def revoke_key(
    id_or_name: Annotated[str, typer.Argument(metavar="ID|NAME", help="The key.")],
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key for good. Its jobs run on, but it can no longer read them."""
    from modelmill_cli.keys import revoke_key as revoke

    revoke(id_or_name, redis_url=redis_url, data_dir=data_dir)
