"""Settings: one typed class, read from ``MODELMILL_*`` environment variables.

Durations end in ``_s``, sizes in ``_bytes``. The command line sets the same variables for the
processes that it starts, so a setting has one name everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelmill.errors import ConfigError

ENV_PREFIX = "MODELMILL_"
MIB = 1024 * 1024
GIB = 1024 * MIB


def _user_dir(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "modelmill"


class Settings(BaseModel):
    """Everything that can be set. Each field ``x`` is the variable ``MODELMILL_X``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", description="The Redis or Valkey (7 or newer) that keeps the jobs."
    )
    broker_url: str | None = Field(None, description="Celery's broker; the job store's Redis when not set.")
    models_file: Path | None = Field(
        None, description="Your own models, a TOML file read after the built-in catalogue."
    )
    data_dir: Path = Field(
        default_factory=lambda: _user_dir("XDG_DATA_HOME", ".local/share"),
        description="Where `modelmill up` keeps the embedded server's data.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: _user_dir("XDG_CACHE_HOME", ".cache"),
        description="Where exported ONNX files are kept; safe to delete.",
    )

    host: str = Field("127.0.0.1", description="Address the API binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API binds to.")
    api_workers: int = Field(
        1, ge=1, le=256, description="Processes that answer HTTP; one takes over a thousand jobs a second."
    )
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR."
    )

    auth: Literal["on", "off"] | None = Field(
        None,
        description="Whether callers need an API key: on or off. When not set, off on "
        "loopback and on elsewhere.",
    )
    allow_no_auth: bool = Field(
        False, description="Lets the API bind to an address beyond loopback although `auth` is off."
    )
    cors_origins: str = Field(
        "",
        description="Web pages that may call the API, as `https://app.example.com`, separated by "
        "commas; `*` for all.",
    )

    max_body_bytes: int = Field(32 * MIB, ge=1024, description="Largest request body.")
    max_image_pixels: int = Field(
        100_000_000, ge=1, description="Largest image, width times height, before decoding."
    )
    max_audio_s: float = Field(1800.0, gt=0, description="Longest audio, in seconds, before decoding.")
    max_queue_depth: int = Field(100_000, ge=1, description="Jobs that may wait for one model.")
    max_queued_bytes: int = Field(
        2 * GIB, ge=1, description="Bytes of request bodies of all jobs that have not ended."
    )
    max_file_bytes: int = Field(64 * MIB, ge=1024, description="Largest uploaded file.")
    max_files_bytes: int = Field(2 * GIB, ge=1, description="Bytes of all uploaded files together.")
    file_ttl_s: int = Field(
        86_400, ge=1, description="How long an uploaded file is kept; longer while a job needs it."
    )
    blob_url: str | None = Field(
        None,
        description="Where large payloads are kept: a folder, or any fsspec URL such as "
        "`s3://bucket/prefix`; in Redis when not set.",
    )
    blob_min_bytes: int = Field(
        256 * 1024, ge=1, description="Payloads from this size on go to `blob_url`, if that is set."
    )
    keep_request_bytes: int = Field(
        64 * 1024,
        ge=0,
        description="Requests of complete jobs up to this size are kept as long as the result, so that "
        "the job can be run again.",
    )

    fetch_hosts: str = Field(
        "",
        description="Hosts that media may be fetched from by URL, separated by commas: `images.example.com`, "
        "`*.example.com`, `*` for all. None when empty.",
    )
    fetch_timeout_s: float = Field(20.0, gt=0, description="How long fetching one of them may take.")
    max_fetch_bytes: int = Field(32 * MIB, ge=1024, description="Largest media that are fetched.")
    webhook_hosts: str = Field("*", description="Hosts that webhooks may be sent to, written like those.")
    webhook_timeout_s: float = Field(15.0, gt=0, description="How long one delivery of a webhook may take.")
    private_networks: str = Field(
        "",
        description="Networks that media may be fetched from and webhooks sent to although they are "
        "not public, as `10.1.0.0/16`, separated by commas.",
    )

    result_ttl_s: int = Field(
        86_400, ge=1, description="How long an ended job can be read, unless it asks otherwise."
    )
    idempotency_ttl_s: int = Field(86_400, ge=1, description="How long an Idempotency-Key is kept.")

    lease_s: float = Field(10.0, gt=0, description="A claim's lease; extended while it works.")
    beat_s: float = Field(2.0, gt=0, description="How often leases and nodes say they live.")
    reap_s: float = Field(1.0, gt=0, description="How often expired leases are looked for.")
    slice_s: float = Field(5.0, gt=0, description="How long one drain may keep the worker.")
    linger_s: float = Field(
        1.0,
        ge=0,
        description="How long a worker stays with a model whose queue it has emptied, to take the next job "
        "without a bell; work for another model sends it away at once.",
    )
    max_deliveries: int = Field(20, ge=1, description="How often one job may be handed out.")
    max_batch: int = Field(
        16, ge=1, le=1024, description="Items in one forward pass, unless the model says otherwise."
    )
    spread_after_s: float = Field(
        2.0,
        ge=0,
        description="Another worker loads a model when those that have it need longer for its queue.",
    )
    claim_bytes: int = Field(64 * MIB, ge=1, description="Request bytes one claim takes at most.")
    preprocess_threads: int = Field(
        2, ge=1, le=64, description="Threads of a worker that decode and prepare inputs."
    )
    batch_timeout_s: float = Field(
        300.0,
        gt=0,
        description="A batch that runs longer, or longer since its last step, is taken for "
        "hung and its process killed.",
    )
    load_timeout_s: float = Field(1800.0, gt=0, description="The same for loading a model.")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on which a worker's first node serves Prometheus metrics; the next nodes count up.",
    )
    shutdown_grace_s: float = Field(
        30.0, gt=0, description="What a worker has, after SIGTERM, to finish the batch in hand."
    )
    model_memory_bytes: int | None = Field(
        None, ge=1, description="Budget for loaded models; 60 % of the device's memory when not set."
    )

    @property
    def longest_drain_s(self) -> float:
        """When a drain gives claimed jobs back that it has not begun. Each time costs reading them again."""
        return 12 * self.slice_s

    @property
    def effective_broker_url(self) -> str:
        return self.broker_url or self.redis_url

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the environment.

        Raises:
            ConfigError: a variable has a value that its setting does not take; names the variable.
        """
        environ = os.environ if environ is None else environ
        # An empty value is "not set", as in a compose file's `${VARIABLE:-}`.
        values = {
            name: environ[variable]
            for name in cls.model_fields
            if environ.get(variable := ENV_PREFIX + name.upper())
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{ENV_PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()
            )
            raise ConfigError(f"The environment holds a setting that cannot be used: {problems}") from None


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings.from_env()
