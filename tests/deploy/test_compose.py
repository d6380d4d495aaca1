"""The compose file does what deploy/README.md promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelmill.settings import ENV_PREFIX, Settings
from modelmill_api.middleware.auth import keys_are_on

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
ONLY_FOR_COMPOSE = {
    "MODELMILL_REDIS_PASSWORD",
    "MODELMILL_REDIS_MAXMEMORY",
    "MODELMILL_MODELS_DIR",
    "MODELMILL_PUBLISH",
}
"""Variables of the compose file itself. No process of ours reads them."""
TORCH_CARRYING = {"torch", "torchvision", "transformers", "diffusers", "accelerate", "sentence-transformers"}

COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker")]
BUILT = [name for name, service in SERVICES.items() if "build" in service]


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match, duration
    return 60 * int(match[1] or 0) + int(match[2] or 0)


def _dockerfile(service: str) -> Path:
    build: dict[str, str] = SERVICES[service]["build"]
    return ROOT / build["context"] / build["dockerfile"]


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instructions and their arguments, without comments, continued lines joined."""
    lines = [
        line
        for line in dockerfile.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(pair[0].upper(), pair[1]) for pair in pairs]


def _arguments(service: str) -> dict[str, str]:
    """The build arguments of a service: the Dockerfile's defaults, replaced by those of the compose file."""
    defaults = dict(
        argument.partition("=")[::2]
        for name, argument in _instructions(_dockerfile(service))
        if name == "ARG"
    )
    given: dict[str, str] = SERVICES[service]["build"].get("args", {})
    return defaults | given


def _extras(service: str) -> set[str]:
    """The extras of this project that a service's image is built with."""
    runs = " ".join(argument for name, argument in _instructions(_dockerfile(service)) if name == "RUN")
    found = re.search(r'"\.\[([^\]]+)\]"', runs)
    assert found, f"{service}: no pip install of this project"
    chosen = re.sub(r"\$\{(\w+)\}", lambda match: _arguments(service)[match[1]], found[1])
    return set(chosen.split(","))


def _requirements(extras: set[str]) -> set[str]:
    """Names of the packages that extras ask for, also through the extras that they contain."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names: set[str] = set()
    open_extras, seen = set(extras), set[str]()
    while open_extras:
        extra = open_extras.pop()
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^\]]+)\])?", requirement)
            assert match, requirement
            if match[1] == project["name"]:
                open_extras |= set((match[2] or "").replace(" ", "").split(",")) - seen
            else:
                names.add(match[1].lower())
    return names


def test_there_are_redis_an_api_and_workers() -> None:
    assert set(SERVICES) == {"redis", "api", "worker", "worker-gpu"}


def test_redis_is_not_published() -> None:
    assert "ports" not in SERVICES["redis"]
    assert SERVICES["redis"].get("network_mode") != "host"


def test_redis_is_of_a_pinned_release() -> None:
    assert re.search(r":\d+\.\d+", SERVICES["redis"]["image"])


def test_redis_keeps_what_it_accepts() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--appendfsync everysec" in command
    assert "--maxmemory-policy noeviction" in command
    name, target = SERVICES["redis"]["volumes"][0].split(":")
    assert (name in COMPOSE["volumes"], target) == (True, "/data")


def test_redis_has_a_password_that_no_process_list_shows() -> None:
    redis = SERVICES["redis"]
    command = " ".join(redis["command"])
    server, _, standard_input = command.partition("<<EOF")
    assert "requirepass $$REDISCLI_AUTH" in standard_input
    assert "PASSWORD" not in command
    assert "AUTH" not in server
    assert redis["environment"]["REDISCLI_AUTH"].startswith("${MODELMILL_REDIS_PASSWORD:?")
    assert " -a " not in " ".join(redis["healthcheck"]["test"])


def test_redis_health_does_not_go_by_exit_status() -> None:
    assert "PONG" in " ".join(SERVICES["redis"]["healthcheck"]["test"])


@pytest.mark.parametrize("service", BUILT)
def test_api_and_workers_use_that_redis_with_its_password(service: str) -> None:
    url = SERVICES[service]["environment"]["MODELMILL_REDIS_URL"]
    assert re.fullmatch(r"redis://:\$\{MODELMILL_REDIS_PASSWORD:\?[^}]+\}@redis:6379/0", url)


def test_the_api_is_published_on_loopback_unless_told_otherwise() -> None:
    assert SERVICES["api"]["ports"] == ["${MODELMILL_PUBLISH:-127.0.0.1}:8000:8000"]
    assert SERVICES["api"]["environment"]["MODELMILL_HOST"] == "0.0.0.0"
    assert not [name for name in SERVICES if name != "api" and "ports" in SERVICES[name]]


def test_the_api_asks_for_keys_wherever_it_is_published() -> None:
    environment = SERVICES["api"]["environment"]
    assert environment["MODELMILL_AUTH"] == "on"
    assert "MODELMILL_ALLOW_NO_AUTH" not in COMPOSE_FILE.read_text(encoding="utf-8")
    plain = {name: value for name, value in environment.items() if "$" not in value}
    assert keys_are_on(Settings.from_env(plain))


def test_the_api_cannot_write_to_its_image() -> None:
    assert SERVICES["api"]["read_only"] is True


def test_the_health_check_of_the_api_asks_whether_it_lives() -> None:
    check = SERVICES["api"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "python"]
    assert "/health/live" in check[-1]
    compile(check[-1], "healthcheck", "exec")


def test_only_the_gpu_profile_asks_for_gpus() -> None:
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    devices = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    others = [service for name, service in SERVICES.items() if name != "worker-gpu"]
    assert not [service for service in others if "profiles" in service or "deploy" in service]


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_restarts_and_tells_its_health(service: str) -> None:
    assert SERVICES[service]["restart"] == "unless-stopped"
    check = SERVICES[service]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert _seconds(check["timeout"]) <= _seconds(check["interval"])


@pytest.mark.parametrize("service", WORKERS)
def test_workers_are_given_longer_than_their_own_grace(service: str) -> None:
    worker = SERVICES[service]
    grace_s = float(worker["environment"]["MODELMILL_SHUTDOWN_GRACE_S"])
    assert _seconds(worker["stop_grace_period"]) >= grace_s + 10
    assert grace_s == Settings.model_fields["shutdown_grace_s"].default


@pytest.mark.parametrize("service", WORKERS)
def test_workers_cache_on_a_volume_that_their_user_owns(service: str) -> None:
    cache = SERVICES[service]["environment"]["MODELMILL_CACHE_DIR"]
    assert f"cache:{cache}" in SERVICES[service]["volumes"]
    instructions = _instructions(_dockerfile(service))
    assert any(
        name == "RUN" and re.search(rf"install .*--owner=\d+ .*{cache}", run) for name, run in instructions
    )


def test_every_variable_is_a_setting_or_documented() -> None:
    settings = {ENV_PREFIX + field.upper() for field in Settings.model_fields}
    named = set(re.findall(rf"{ENV_PREFIX}[A-Z_]+", COMPOSE_FILE.read_text(encoding="utf-8")))
    assert named - settings == ONLY_FOR_COMPOSE
    set_ones = {name for service in SERVICES.values() for name in service["environment"]}
    assert not ONLY_FOR_COMPOSE & set_ones
    documented = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in named if f"`{name}`" not in documented]


@pytest.mark.parametrize("service", BUILT)
def test_every_image_runs_as_an_unprivileged_user(service: str) -> None:
    users = [argument for name, argument in _instructions(_dockerfile(service)) if name in {"FROM", "USER"}]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "the last stage ends as a user by number"
    assert SERVICES[service].get("user") is None
    assert SERVICES[service].get("privileged") is None


@pytest.mark.parametrize("service", BUILT)
def test_every_image_starts_its_process_without_a_shell(service: str) -> None:
    name, command = _instructions(_dockerfile(service))[-1]
    assert name == "CMD"
    assert yaml.safe_load(command)[0] == "modelmill"


@pytest.mark.parametrize("service", BUILT)
def test_every_image_installs_what_was_tested_and_imports_nothing_by_chance(service: str) -> None:
    text = _dockerfile(service).read_text(encoding="utf-8")
    assert "--constraint constraints.txt" in text
    assert "PYTHONSAFEPATH=1" in text


def test_the_image_of_the_api_has_no_torch() -> None:
    assert not _requirements(_extras("api")) & TORCH_CARRYING


def test_the_image_of_the_cpu_worker_takes_torch_without_cuda() -> None:
    assert "torch" in _requirements(_extras("worker"))
    assert _arguments("worker")["TORCH_INDEX"].endswith("/whl/cpu")


def test_the_image_of_the_gpu_worker_takes_torch_with_cuda() -> None:
    names = _requirements(_extras("worker-gpu"))
    assert {"torch", "onnxruntime-gpu"} <= names
    # Both packages install the same files, and the last one installed wins.
    assert "onnxruntime" not in names
    assert _arguments("worker-gpu")["TORCH_INDEX"] == ""


def test_the_build_context_holds_the_packages_and_nothing_unasked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == {*packages, "LICENSE", "README.md", "constraints.txt", "pyproject.toml"}


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("docker is not installed")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin")
    done = subprocess.run(
        [docker, "compose", "--file", str(COMPOSE_FILE), "--profile", "gpu", "config", "--quiet"],
        env=os.environ | {"MODELMILL_REDIS_PASSWORD": "secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
