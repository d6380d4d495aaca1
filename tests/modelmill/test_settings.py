from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from modelmill.errors import ConfigError
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


def test_data_and_cache_follow_the_users_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    settings = Settings()

    assert settings.data_dir == tmp_path / "data" / "modelmill"
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
