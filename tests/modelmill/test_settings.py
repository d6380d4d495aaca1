from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from modelmill.errors import ConfigError
from modelmill.setting_types import masked
from modelmill.settings import GIB, MIB, Settings, get_settings


def test_each_field_is_a_variable() -> None:
    settings = Settings.from_env(
        {
            "MODELMILL_REDIS_URL": "redis://store:6380/3",
            "MODELMILL_MODELS_FILE": "/etc/models.toml",
            "MODELMILL_PORT": "9000",
            "MODELMILL_LEASE_S": "2.5",
            "MODELMILL_MODEL_MEMORY_BYTES": "1073741824",
        }
    )

    assert settings.redis_url == "redis://store:6380/3"
    assert settings.models_file == Path("/etc/models.toml")
    assert settings.port == 9000
    assert settings.lease_s == 2.5
    assert settings.model_memory_bytes == GIB


def test_an_empty_variable_is_not_set() -> None:
    empty = {f"MODELMILL_{name.upper()}": "" for name in Settings.model_fields}

    assert Settings.from_env(empty) == Settings.from_env({})


def test_variables_of_others_and_unknown_ones_are_left_alone() -> None:
    environment = {
        "PORT": "1",
        "REDIS_URL": "redis://elsewhere",
        "modelmill_port": "1",
        "MODELMILL_NOPE": "1",
    }

    assert Settings.from_env(environment) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MODELMILL_PORT", "eighty"),
        ("MODELMILL_PORT", "65536"),
        ("MODELMILL_PORT", "-1"),
        ("MODELMILL_LOG_LEVEL", "LOUD"),
        ("MODELMILL_MAX_BODY_BYTES", "1"),
        ("MODELMILL_MAX_IMAGE_PIXELS", "0"),
        ("MODELMILL_LEASE_S", "0"),
        ("MODELMILL_LEASE_S", "10s"),
        ("MODELMILL_MAX_BATCH", "1025"),
        ("MODELMILL_PREPROCESS_THREADS", "1.5"),
    ],
)
def test_a_wrong_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{variable}: \S"):
        Settings.from_env({variable: value})


def test_every_wrong_variable_is_named_and_no_value_is_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({"MODELMILL_PORT": "secret1", "MODELMILL_BEAT_S": "secret2"})

    assert "MODELMILL_PORT: " in str(caught.value)
    assert "MODELMILL_BEAT_S: " in str(caught.value)
    assert "secret" not in str(caught.value)


def test_by_default_nothing_listens_or_connects_beyond_this_machine() -> None:
    settings = Settings()

    assert ipaddress.ip_address(settings.host).is_loopback
    assert ipaddress.ip_address(urlsplit(settings.effective_broker_url).hostname or "").is_loopback
    assert settings.max_body_bytes == 32 * MIB


def test_the_broker_is_the_job_store_unless_it_is_set() -> None:
    store = "redis://store:6379/0"

    assert Settings(redis_url=store).effective_broker_url == store
    assert Settings(redis_url=store, broker_url="redis://broker/1").effective_broker_url == "redis://broker/1"


ENCODE = "percent-encode the password: write # as %23"
REDIS_FAULTS = [
    ("redis://:pa#ss@host:6379/0", ENCODE),
    ("redis://:pa/ss@host:6379/0", ENCODE),
    ("redis://:pa?ss@host:6379/0", ENCODE),
    ("redis://:pa[ss@host:6379/0", r"percent-encode|write \[ in a password as %5B"),
    ("redis://:pa ss@host:6379/0", "holds a space; in a password, write it as %20"),
    ("localhost:6379", "needs a scheme before the host, such as redis://"),
    ("//localhost:6379", "needs a scheme before the host"),
    ("host", "needs a scheme before the host"),
    ("http://host:6379", "has a scheme that is not known here"),
    ("REDIS://host", "has a scheme that is not known here"),
    ("sentinel://host:26379", "has a scheme that is not known here"),
    ("redis://host:63790000/0", "has a port that is not a number from 1 to 65535"),
    ("redis://host:port/0", "has a port that is not a number"),
    ("redis://host:0/0", "has a port that is not a number from 1 to 65535"),
    ("redis://[::1/0", "has a host that is no address or name"),
    ("redis:///0", "names no host"),
    ("redis://:hunter2@:6379/0", "names no host"),
    ("redis://", "names no host"),
    ("redis://host/zero", "names a database that is not a number"),
    ("redis://host/0/1", "names a database that is not a number"),
    ("redis://host?db=zero", "names a database that is not a number"),
    ("redis://host?password=hunter2", "has a password behind the question mark"),
    ("redis://host?databse=1", "has an unknown option behind the question mark"),
    ("redis://host?ssl_cert_reqs=none", "write rediss:// to use TLS"),
    ("rediss://host?ssl_ca_certs=/gone", "names a file in ssl_ca_certs that is not there"),
    ("unix://", "names no socket"),
    ("unix://host", "names no socket"),
    ("'redis://host'", "stands in quotes that the program sees"),
]


@pytest.mark.parametrize(("url", "advice"), REDIS_FAULTS)
def test_a_store_that_cannot_be_named_so_is_told_with_the_way_out(url: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"MODELMILL_REDIS_URL: it .*({advice})") as caught:
        Settings.from_env({"MODELMILL_REDIS_URL": url})

    assert not re.search(r"hunter2|\bpa\b|\bss\b", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "for_celery"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://host", "redis://host"),
        ("redis://[::1]:6379", "redis://[::1]:6379"),
        ("redis://:pa%23ss@host/1", "redis://:pa%23ss@host/1"),
        ("redis://user:p@ss@host/1", "redis://user:p@ss@host/1"),
        ("redis://:p;q@host/1", "redis://:p%3Bq@host:6379/1"),
        ("redis://host?db=2", "redis://host:6379/2"),
        ("rediss://u:p@host:6380/2", "rediss://u:p@host:6380/2?ssl_cert_reqs=required"),
        ("rediss://host?ssl_cert_reqs=none", "rediss://host:6379/0?ssl_cert_reqs=none"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://:pw@/run/redis.sock?db=3", "redis+socket://:pw@/run/redis.sock?virtual_host=3"),
    ],
)
def test_a_store_is_named_to_celery_in_its_own_way(url: str, for_celery: str) -> None:
    assert Settings.from_env({"MODELMILL_REDIS_URL": f" {url}\n"}).effective_broker_url == for_celery


@pytest.mark.parametrize(
    "url", ["amqp://guest:guest@rabbit:5672//", "redis://a/0;redis://b/1", "memory://", "sqs://"]
)
def test_other_brokers_stay_as_they_are(url: str) -> None:
    assert Settings.from_env({"MODELMILL_BROKER_URL": url}).effective_broker_url == url


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("amqp://guest:guest@rabbit:port//", "has a port that is not a number"),
        ("rabbit:5672", "needs a scheme before the host"),
        ("carrier-pigeon://coop", "has a scheme that Celery does not know"),
        (
            "confluentkafka://host",
            r"needs a package .*: pip install 'celery\[confluentkafka\]'",
        ),
        ("redis://a;redis://b:x", "has a port that is not a number"),
    ],
)
def test_a_broker_that_cannot_be_named_so_is_told(url: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"MODELMILL_BROKER_URL: it {advice}"):
        Settings.from_env({"MODELMILL_BROKER_URL": url})


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("MODELMILL_LEASE_S", "5s", "it must be a number of seconds without a unit, such as 30"),
        ("MODELMILL_RESULT_TTL_S", "1.5", "it must be a whole number of seconds"),
        ("MODELMILL_MAX_BODY_BYTES", "64MB", "it must be a whole number of bytes without a unit"),
        ("MODELMILL_MAX_DELIVERIES", "many", "it must be a whole number"),
        ("MODELMILL_MAX_DELIVERIES", "-1", "it must be greater than or equal to 1"),
        ("MODELMILL_LEASE_S", "nan", "it must be a finite number"),
        ("MODELMILL_LEASE_S", "inf", "it must be a finite number"),
        ("MODELMILL_RESULT_TTL_S", "10000000000", "it must be at most 1000000000"),
        ("MODELMILL_MAX_QUEUED_BYTES", "1" + "0" * 40, "it must be at most"),
        ("MODELMILL_ALLOW_NO_AUTH", "maybe", "it must be true or false"),
        ("MODELMILL_AUTH", "maybe", "it must be 'on' or 'off'"),
        ("MODELMILL_HOST", "http://127.0.0.1", "it must be an address or a name alone"),
        ("MODELMILL_HOST", "127.0.0.1:8000", "the port is MODELMILL_PORT"),
        ("MODELMILL_HOST", "two words", "it must be an address or a name of a host"),
        ("MODELMILL_BLOB_URL", "s3:/bucket", "it is neither a folder nor a URL"),
        ("MODELMILL_BLOB_URL", "s3://", "it names no place behind ://"),
        ("MODELMILL_BLOB_URL", "file://data/blobs", "write file:///"),
        ("MODELMILL_FETCH_HOSTS", "http://example.com/", "'http://example.com/' is not a host"),
        ("MODELMILL_WEBHOOK_HOSTS", "a b", "'a b' is not a host"),
        ("MODELMILL_PRIVATE_NETWORKS", "10.0.0.0/99", "'10.0.0.0/99' does not appear to be"),
        ("MODELMILL_LEASE_S", "2", "MODELMILL_LEASE_S must be longer than MODELMILL_BEAT_S"),
        ("MODELMILL_BEAT_S", "60", "MODELMILL_LEASE_S must be longer than MODELMILL_BEAT_S"),
    ],
)
def test_a_wrong_value_is_told_with_the_way_out(variable: str, value: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({variable: value})

    assert variable in str(caught.value)
    assert advice in str(caught.value)


def test_values_are_taken_as_people_write_them() -> None:
    settings = Settings.from_env(
        {
            "MODELMILL_REDIS_URL": "redis://:pw@store/1\n",
            "MODELMILL_PORT": " 8080\r\n",
            "MODELMILL_LOG_LEVEL": "debug",
            "MODELMILL_AUTH": "True",
            "MODELMILL_HOST": "[::1]",
            "MODELMILL_CACHE_DIR": "~/models\n",
            "MODELMILL_BLOB_URL": "~/blobs",
            "MODELMILL_BROKER_URL": "\n",
        }
    )

    assert settings.redis_url == "redis://:pw@store/1"
    assert (settings.port, settings.log_level, settings.auth, settings.host) == (8080, "DEBUG", "on", "::1")
    assert settings.cache_dir == Path("~/models").expanduser()
    assert settings.blob_url == str(Path("~/blobs").expanduser())
    assert settings.broker_url is None


def test_no_password_is_shown_with_the_settings_or_in_a_log() -> None:
    settings = Settings(
        redis_url="redis://:hunter2@store/0",
        broker_url="redis://me:hunter%232@store/0",
        blob_url="ftp://me:hunter2@files/x",
    )

    with pytest.raises(ValidationError) as caught:
        Settings(redis_url="redis://:hunter#2@store/0")

    assert "hunter" not in repr(settings) + str(settings) + str(caught.value)
    said = "no answer from me:hunter2@files, hunter%232, hunter#2"
    hidden = masked(said, settings.redis_url, settings.broker_url, settings.blob_url)
    assert hidden == "no answer from me:***@files, ***, ***"


def test_data_and_cache_follow_the_users_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    settings = Settings()

    assert settings.needed_data_dir == tmp_path / "data" / "modelmill"
    assert settings.cache_dir == tmp_path / "home" / ".cache" / "modelmill"


def test_the_environment_is_the_processs_own_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMILL_PORT", "8123")

    assert Settings.from_env().port == 8123


def test_the_processs_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_settings()
    monkeypatch.setenv("MODELMILL_PORT", str(first.port + 1))

    assert get_settings() is first


def test_settings_do_not_change_and_take_no_unknown_name() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings.model_validate({"prot": 8000})


def test_every_duration_and_size_carries_its_unit() -> None:
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation is float}

    assert all(name.endswith("_s") for name in numbers)
