"""The API's application: parts put together, and the routes as one list."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from modelmill import __version__
from modelmill.broker import Bells, make_celery
from modelmill.catalogue import Catalogue
from modelmill.outbound import Guard
from modelmill.settings import Settings, get_settings
from modelmill.store import ApiStore, JobNews
from modelmill_api import problems
from modelmill_api.background.sweeper import sweep_until
from modelmill_api.background.webhooks import deliver_until
from modelmill_api.media import media_guard
from modelmill_api.middleware.auth import Authenticate, add_cors, keys_are_on
from modelmill_api.middleware.head import AnswerHead
from modelmill_api.middleware.metrics import CountRequests, RequestMetrics
from modelmill_api.openapi import schemas
from modelmill_api.openapi.routes import job_routes
from modelmill_api.routes import (
    bulk,
    events,
    files,
    health,
    jobs,
    models,
    operations,
    results,
    webhooks,
)
from modelmill_api.routes import (
    collect as collecting,
)
from modelmill_api.routes import (
    job_actions as resources,
)
from modelmill_api.state import ApiState, Directory, reap_until
from modelmill_api.waiting import on_stop_signal

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Submit a job, get an id, and wait for its end or poll. "
    "Jobs that were accepted are never lost, and run in batches on workers."
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Nothing is connected before it starts."""
    settings = settings or get_settings()
    catalogue = Catalogue.load(settings.models_file)
    requests = RequestMetrics()
    # FastAPI would look whether OpenTelemetry is set up at every request, for a twentieth of its cost.
    observed = any(name.startswith("OTEL_") for name in os.environ)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = ApiStore(settings)
        loop = asyncio.get_running_loop()

        giving_up: set[asyncio.Task[None]] = set()

        def release_bell(model: str) -> None:
            # Called from the thread that sends bells, maybe when the loop has ended; the store belongs to
            # the loop, and so does a coroutine, which would be left over if it were made here.
            loop.call_soon_threadsafe(give_up, model)

        def give_up(model: str) -> None:
            task = asyncio.create_task(store.release_bell(model), name=model)
            giving_up.add(task)
            task.add_done_callback(gave_up)

        def gave_up(task: asyncio.Task[None]) -> None:
            giving_up.discard(task)
            if not task.cancelled() and (error := task.exception()):
                logger.warning("nobody else may ring for model %s for a while: %s", task.get_name(), error)

        bells = Bells(make_celery(settings), release_bell)
        news = JobNews(settings, store)
        guard = media_guard(settings)
        directory = Directory(catalogue, store)
        webhook_guard = Guard.for_webhooks(settings)
        app.state.modelmill = ApiState(
            settings, store, bells, directory, news, requests, guard, webhook_guard
        )
        # All that is there now stays. Looking through it took the garbage collector 60 ms each second under
        # load, in which nobody was answered.
        gc.collect()
        gc.freeze()
        await news.start()
        stopping = asyncio.Event()
        reaper = asyncio.create_task(reap_until(stopping, app.state.modelmill))
        deliverer = asyncio.create_task(deliver_until(stopping, app.state.modelmill))
        sweeper = asyncio.create_task(sweep_until(stopping, store.files, has_blobs=store.blobs is not None))
        try:
            with on_stop_signal(news.shut_down):
                yield
        finally:
            stopping.set()
            await news.close()
            await reaper
            await sweeper
            await deliverer
            await asyncio.to_thread(bells.close)
            await asyncio.gather(*giving_up, return_exceptions=True)
            await webhook_guard.close()
            if guard is not None:
                await guard.close()
            await store.close()

    app = FastAPIOffline(
        title="Modelmill",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"tracing": observed, "metrics": observed, "logs": observed},
    )
    problems.install(app)
    schemas.install(app, job_routes, with_keys=keys_are_on(settings))
    # The last one is the outermost: preflights pass without a key, and what is refused is counted.
    app.add_middleware(AnswerHead)
    app.add_middleware(Authenticate, settings=settings)
    add_cors(app, settings)
    app.add_middleware(CountRequests, metrics=requests)
    jobs.add_routes(app)
    bulk.add_routes(app)
    for routes in (health, operations, models, jobs, files, resources, results, collecting, webhooks, events):
        app.include_router(routes.router)
    return app


app = create_app()
