"""Puts the API's application together, and starts and stops what belongs to it."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from modelmill import __version__
from modelmill.catalogue import Catalogue
from modelmill.errors import ConfigError
from modelmill.outbound import Guard
from modelmill.settings import Settings, get_settings
from modelmill.start_checks import check_start
from modelmill.store import ApiStore, JobNews
from modelmill_api import problems
from modelmill_api.background.reaper import reap_until
from modelmill_api.background.sweeper import sweep_until
from modelmill_api.background.webhooks import deliver_until
from modelmill_api.bells import AsyncBells
from modelmill_api.checks import check_settings
from modelmill_api.directory import Directory
from modelmill_api.media import make_media_guard
from modelmill_api.middleware.auth import Authenticate, add_cors, keys_are_on
from modelmill_api.middleware.edge import Edge
from modelmill_api.middleware.head import AnswerHead
from modelmill_api.middleware.metrics import CountRequests, RequestMetrics
from modelmill_api.openapi import document
from modelmill_api.openapi.routes import job_routes
from modelmill_api.room import BodyRoom
from modelmill_api.routes import (
    assets,
    bulk,
    collect,
    events,
    files,
    health,
    job_actions,
    jobs,
    models,
    operations,
    results,
    webhooks,
)
from modelmill_api.signals import on_stop_signal
from modelmill_api.state import ApiState
from modelmill_tasks.limits import MediaLimits

DESCRIPTION = (
    "Submit a job, get an id, and wait for its end or poll. "
    "Jobs that were accepted are never lost, and run in batches on workers."
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Makes the application.

    Args:
        settings: If left out, this is the factory of a server: it reads the environment and checks the job
            store. If something cannot be used, it prints one sentence and ends the process with status 2.

    Raises:
        ConfigError: a setting or the models file cannot be used.
    """
    if settings is not None:
        return _make_app(settings)
    try:
        settings = get_settings()
        check_settings(settings)
        app = _make_app(settings)
        check_start(settings)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
            # One of several processes of uvicorn, which would start it again for ever.
            os.kill(parent.pid, signal.SIGTERM)
        raise SystemExit(2) from None
    return app


def _make_app(settings: Settings) -> FastAPI:
    catalogue = Catalogue.load(settings.models_file)
    metrics = RequestMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with serving(settings, catalogue, metrics) as state:
            app.state.modelmill = state
            yield

    # FastAPI would check for OpenTelemetry at every request, which takes a twentieth of the request's time.
    traced = any(name.startswith("OTEL_") for name in os.environ)
    app = FastAPIOffline(
        title="Modelmill",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"tracing": traced, "metrics": traced, "logs": traced},
    )
    assets.keep_assets(app)
    problems.install(app)
    document.install(app, job_routes, with_keys=keys_are_on(settings))
    _add_middleware(app, settings, metrics)
    _add_routes(app)
    return app


@asynccontextmanager
async def serving(
    settings: Settings, catalogue: Catalogue, metrics: RequestMetrics
) -> AsyncIterator[ApiState]:
    """The parts of this API process, from its start to its stop."""
    state = _make_state(settings, catalogue, metrics)
    # All objects of now stay. Looking through them took the garbage collector 60 ms of each second under
    # load, and meanwhile no request was answered.
    gc.collect()
    gc.freeze()
    await state.news.start()
    stopping = asyncio.Event()
    background = _start_background(stopping, state)
    try:
        with on_stop_signal(state.news.shut_down):
            yield state
    finally:
        stopping.set()
        await state.news.close()
        for task in background:
            await task
        await state.bells.close()
        await state.webhook_guard.close()
        if state.media_guard is not None:
            await state.media_guard.close()
        await state.store.close()


def _make_state(settings: Settings, catalogue: Catalogue, metrics: RequestMetrics) -> ApiState:
    store = ApiStore(settings)
    return ApiState(
        settings=settings,
        media_limits=MediaLimits.from_settings(settings),
        store=store,
        room=BodyRoom(settings),
        bells=AsyncBells(settings, store),
        directory=Directory(catalogue, store),
        news=JobNews(settings, store),
        metrics=metrics,
        media_guard=make_media_guard(settings),
        webhook_guard=Guard.for_webhooks(settings),
    )


def _start_background(stopping: asyncio.Event, state: ApiState) -> Sequence[asyncio.Task[None]]:
    return [
        asyncio.create_task(reap_until(stopping, state)),
        asyncio.create_task(
            sweep_until(stopping, state.store.files, has_blobs=state.store.blobs is not None)
        ),
        asyncio.create_task(deliver_until(stopping, state)),
    ]


def _add_middleware(app: FastAPI, settings: Settings, metrics: RequestMetrics) -> None:
    # The last one added is the outermost: preflights pass without a key, refused requests are counted, and
    # no layer sees an address with a slash at its end.
    app.add_middleware(AnswerHead)
    app.add_middleware(Authenticate, settings=settings)
    add_cors(app, settings)
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(Edge)


def _add_routes(app: FastAPI) -> None:
    jobs.add_routes(app)
    bulk.add_routes(app)
    for routes in (
        health,
        operations,
        models,
        jobs,
        files,
        job_actions,
        results,
        collect,
        webhooks,
        events,
    ):
        app.include_router(routes.router)
