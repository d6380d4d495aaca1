"""The settings: one typed class, read from ``MODELMILL_*`` environment variables.

Names of durations end in ``_s``, those of sizes in ``_bytes``. The command line sets the same variables
for the processes that it starts, so a setting has the same name everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from modelmill.errors import ConfigError
from modelmill.folders import default_cache_dir, default_data_dir
from modelmill.setting_types import (
    BlobUrl,
    BrokerUrl,
    Capitals,
    HostList,
    HostName,
    NetworkList,
    OnOff,
    RedisUrl,
    UserPath,
    as_broker_url,
)

ENV_PREFIX = "MODELMILL_"
MIB = 1024 * 1024
GIB = 1024 * MIB
LARGEST_S = 1_000_000_000
"""31 years. Redis refuses times that lie further ahead, but only when a job ends."""
LARGEST = 2**53
"""Lua's numbers are exact up to here."""


class Settings(BaseModel):
    """All settings. Field ``x`` is the variable ``MODELMILL_X``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="The Redis or Valkey (7 or newer) that keeps the jobs.",
    )
    allow_eviction: bool = Field(
        False,
        description="Allows a Redis that evicts keys when its memory is full, and so loses jobs.",
    )
    broker_url: BrokerUrl | None = Field(
        None, repr=False, description="Celery's broker. When not set: the Redis of the job store."
    )
    models_file: UserPath | None = Field(
        None, description="Your own models, a TOML file read after the built-in catalogue."
    )
    data_dir: UserPath | None = Field(
        default_factory=default_data_dir,
        description="Where `modelmill up` keeps the embedded server's data.",
    )
    cache_dir: UserPath = Field(
        default_factory=default_cache_dir,
        description="Where exported ONNX files are kept. You can delete it at any time.",
    )

    host: HostName = Field("127.0.0.1", description="Address that the API binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port that the API binds to.")
    api_workers: int = Field(
        1, ge=1, le=256, description="Processes that answer HTTP. One accepts over a thousand jobs a second."
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Capitals] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )

    auth: Annotated[Literal["on", "off"] | None, OnOff] = Field(
        None,
        description="Whether callers need an API key: on or off. When not set: off on loopback, else on.",
    )
    allow_no_auth: bool = Field(
        False, description="Allows the API to bind to an address beyond loopback while `auth` is off."
    )
    cors_origins: str = Field(
        "",
        description="Web pages that may call the API, such as `https://app.example.com`, separated by "
        "commas; `*` for all.",
    )

    max_body_bytes: int = Field(32 * MIB, ge=1024, description="Largest request body.")
    max_bodies_bytes: int = Field(
        128 * MIB,
        ge=MIB,
        description="Request bodies that one API process holds at once. A request beyond that waits for a "
        "moment, and is then refused with 503.",
    )
    max_head_bytes: int = Field(
        64 * 1024, ge=8192, description="Largest head of a request: its first line and its headers."
    )
    max_headers: int = Field(128, ge=16, description="Headers of one request.")
    max_url_bytes: int = Field(
        16 * 1024, ge=1024, description="Longest address of a request, with its query."
    )
    max_connections: int = Field(
        4096,
        ge=16,
        description="Connections of one API process. If all are taken, a new one closes the one that has "
        "been without a request for longest.",
    )
    head_timeout_s: float = Field(
        10.0, gt=0, description="How long a client may take for the head of a request."
    )
    keep_alive_s: int = Field(
        5, ge=1, description="How long a connection may stay open between two requests."
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        description="A request ends if its body is slower than `min_body_bytes_per_s` for this long.",
    )
    min_body_bytes_per_s: int = Field(1024, ge=1, description="The slowest that a request body may arrive.")
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
        86_400, ge=1, description="How long an uploaded file is kept. It stays longer while a job needs it."
    )
    blob_url: BlobUrl | None = Field(
        None,
        repr=False,
        description="Where large payloads are kept: a folder, or any fsspec URL such as "
        "`s3://bucket/prefix`. When not set: in Redis.",
    )
    blob_min_bytes: int = Field(
        256 * 1024, ge=1, description="Payloads of at least this size go to `blob_url`, if it is set."
    )
    max_result_bytes: int = Field(
        256 * MIB,
        ge=1024,
        description="Largest result of one job. Without `blob_url`, Redis also has a limit: 512 MiB for one "
        "value, unless its `proto-max-bulk-len` says otherwise.",
    )
    max_held_results: int = Field(
        1000,
        ge=0,
        description="Results that a worker holds while they cannot be written, because Redis has no memory "
        "or `blob_url` fails.",
    )
    max_held_bytes: int = Field(512 * MIB, ge=0, description="Bytes of these results together.")
    max_hold_s: float = Field(
        300.0,
        ge=0,
        description="How long such a result is held. Beyond these three limits, a result for `blob_url` goes "
        "to Redis if Redis has room, and any other job fails as `result_not_stored`.",
    )
    keep_request_bytes: int = Field(
        64 * 1024,
        ge=0,
        description="The request of a complete job is kept as long as its result if it has at most this "
        "size, so that the job can be run again.",
    )

    fetch_hosts: HostList = Field(
        "",
        description="Hosts from which media may be fetched by URL, separated by commas: "
        "`images.example.com`, `*.example.com`, `*` for all. When empty: no host.",
    )
    fetch_timeout_s: float = Field(20.0, gt=0, description="How long one fetch of media may take.")
    max_fetch_bytes: int = Field(32 * MIB, ge=1024, description="Largest media that are fetched.")
    webhook_hosts: HostList = Field(
        "*", description="Hosts to which webhooks may be sent, written as in `fetch_hosts`."
    )
    webhook_timeout_s: float = Field(15.0, gt=0, description="How long one delivery of a webhook may take.")
    private_networks: NetworkList = Field(
        "",
        description="Networks that are not public, but from which media may be fetched and to which webhooks "
        "may be sent, such as `10.1.0.0/16`, separated by commas.",
    )

    result_ttl_s: int = Field(
        86_400, ge=1, description="How long an ended job can be read, unless its request says otherwise."
    )
    idempotency_ttl_s: int = Field(
        86_400,
        ge=1,
        description="How long an Idempotency-Key is kept at least. It is kept as long as its job waits, runs "
        "or can be read.",
    )

    lease_s: float = Field(
        10.0, gt=0, description="Lease of a claimed job. The worker renews it while it works."
    )
    beat_s: float = Field(
        2.0, gt=0, description="How often workers renew their leases and announce their nodes."
    )
    reap_s: float = Field(1.0, gt=0, description="How often expired leases are searched for.")
    slice_s: float = Field(5.0, gt=0, description="How long one drain may occupy the worker.")
    linger_s: float = Field(
        1.0,
        ge=0,
        description="How long a worker waits at the empty queue of a model, to take the next job without a "
        "bell. Work for another model ends the wait at once.",
    )
    max_deliveries: int = Field(20, ge=1, description="How often one job may be claimed.")
    max_batch: int = Field(
        16, ge=1, le=1024, description="Items in one forward pass, unless the model says otherwise."
    )
    spread_after_s: float = Field(
        2.0,
        ge=0,
        description="If the workers that have a model loaded need longer than this for its queue, "
        "another worker loads it too.",
    )
    claim_bytes: int = Field(64 * MIB, ge=1, description="Most bytes of requests that one claim takes.")
    preprocess_threads: int = Field(
        2, ge=1, le=64, description="Threads of a worker that decode and prepare inputs."
    )
    batch_timeout_s: float = Field(
        300.0,
        gt=0,
        description="If a batch runs longer than this, or longer since its last step, it counts as hung "
        "and its process is killed.",
    )
    load_timeout_s: float = Field(1800.0, gt=0, description="The same for loading a model.")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on which the first node of a worker serves Prometheus metrics. The next nodes "
        "use the next ports.",
    )
    shutdown_grace_s: float = Field(
        30.0, gt=0, description="Time that a worker has, after SIGTERM, to finish the batch in progress."
    )
    model_memory_bytes: int | None = Field(
        None, ge=1, description="Budget for loaded models; 60 % of the device's memory when not set."
    )

    @property
    def longest_drain_s(self) -> float:
        """After this time a drain gives back the claimed jobs that it has not begun. Each job is then
        read again."""
        return 12 * self.slice_s

    @property
    def effective_broker_url(self) -> str:
        """In kombu's form; see ``as_broker_url``."""
        return as_broker_url(self.broker_url or self.redis_url)

    @property
    def needed_data_dir(self) -> Path:
        """``data_dir``, for a command that cannot do without it.

        Raises:
            ConfigError: it is not set, and this user has no home folder.
        """
        if self.data_dir is None:
            raise ConfigError(
                "This user has no home folder to keep jobs in. Name a folder with --data-dir or "
                f"{ENV_PREFIX}DATA_DIR."
            )
        return self.data_dir

    @field_validator("*", mode="after")
    @classmethod
    def _not_too_large(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int | float):
            limit = LARGEST_S if str(info.field_name).endswith("_s") else LARGEST
            if value > limit:
                raise ValueError(f"it must be at most {limit}")
        return value

    @model_validator(mode="after")
    def _leases_outlive_heartbeats(self) -> Settings:
        if self.lease_s <= self.beat_s:
            raise ValueError(
                f"{ENV_PREFIX}LEASE_S must be longer than {ENV_PREFIX}BEAT_S, and better several times as "
                "long: otherwise leases end before they are renewed, and every job runs again and again"
            )
        return self

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the environment.

        Raises:
            ConfigError: a variable has a value that its setting does not allow; the message names the
                variable.
        """
        environ = os.environ if environ is None else environ
        # An empty value counts as not set, as `${VARIABLE:-}` of a compose file gives. Space around a value
        # does not count: files of secrets end in a newline.
        values = {
            name: value
            for name in cls.model_fields
            if (value := environ.get(ENV_PREFIX + name.upper(), "").strip())
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(map(_in_words, error.errors(include_input=False, include_url=False)))
            raise ConfigError(f"The environment holds a setting that cannot be used: {problems}") from None


def _in_words(problem: Any) -> str:
    """What is wrong with a variable, without its value."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    kind = problem["type"]
    if kind.startswith(("int_", "float_")):
        if name.endswith("_bytes"):
            message = f"it must be a whole number of bytes without a unit, such as {64 * MIB} for 64 MiB"
        elif name.endswith("_s"):
            whole = "whole " if kind.startswith("int_") else ""
            message = f"it must be a {whole}number of seconds without a unit, such as 30"
        else:
            message = "it must be a whole number"
    elif kind.startswith("bool_"):
        message = "it must be true or false"
    elif message.startswith("Input should be "):
        message = "it must be " + message.removeprefix("Input should be ")
    return f"{ENV_PREFIX}{name.upper()}: {message}"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings.from_env()
