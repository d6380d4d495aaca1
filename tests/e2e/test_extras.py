"""Installations with only some extras: each command works, or says in one sentence what to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modelmill.extras import EXTRAS
from tests.support.paths import REPOSITORY

SITE = Path(sysconfig.get_path("purelib"))

_PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OURS = [
    *_PROJECT["dependencies"],
    *(
        f'{line}; extra == "{extra}"'
        for extra, lines in _PROJECT["optional-dependencies"].items()
        for line in lines
    ),
]
"""What this checkout requires. The metadata of an older installation may differ."""


def needed_by(name: str, *extras: str) -> set[str]:
    """Names of the distributions that pip would install for ``name[extras]``."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(name, extras)]
    while waiting:
        key = waiting.pop()
        if key in found:
            continue
        found.add(key)
        try:
            lines = OURS if key[0] == "modelmill" else distribution(key[0]).requires or []
        except PackageNotFoundError:
            continue
        for each in map(Requirement, lines):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in (*key[1], "")):
                waiting.append((canonicalize_name(each.name), tuple(sorted(each.extras))))
    return {canonicalize_name(each) for each, _ in found}


class Installation:
    """A virtual environment with links to the packages that the extras need, and to no others."""

    def __init__(self, folder: Path, *extras: str) -> None:
        self._folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        wanted = needed_by("modelmill", *extras)
        for each in distributions(path=[str(SITE)]):
            if canonicalize_name(each.metadata["Name"]) in wanted - {"modelmill"}:
                for top in {file.parts[0] for file in each.files or () if ".." not in file.parts}:
                    if top != "__pycache__" and not (packages / top).exists():
                        (packages / top).symlink_to(SITE / top)
        sources = [REPOSITORY, *(REPOSITORY / name for name in ("api", "backends", "cli", "tasks", "worker"))]
        (packages / "modelmill.pth").write_text("".join(f"{source}\n" for source in sources))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELMILL_")}
        environment |= {"MODELMILL_DATA_DIR": str(self._folder / "data"), "COLUMNS": "200"}
        return subprocess.run(
            [str(self._folder / "bin" / "python"), "-P", *arguments],
            env=environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def modelmill(self, command: str) -> str:
        """What a command that fails says; all of it, to standard error."""
        done = self.python("-m", "modelmill_cli", *command.split())
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        # The supervisor logs its starts of nodes.
        lines = done.stderr.splitlines()
        return next(line for line in lines if "missing" in line or "not installed" in line)


@pytest.fixture(scope="module")
def client_only(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("base") / "env")


@pytest.fixture(scope="module")
def with_cli(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("cli") / "env", "cli")


@pytest.fixture(scope="module")
def with_server(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("server") / "env", "server")


@pytest.mark.parametrize(
    "code", ["modelmill.load('minilm')", "modelmill.list_models()", "import modelmill.plugin as p; p.Runner"]
)
def test_a_function_that_needs_an_extra_raises_one_sentence(client_only: Installation, code: str) -> None:
    done = client_only.python("-c", f"import modelmill; {code}")

    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "modelmill.extras.MissingExtraError: The package pydantic is missing; install it: "
    )
    assert last.endswith("pip install 'modelmill[tasks]'")


def test_the_command_line_without_its_extra_names_it(client_only: Installation) -> None:
    said = client_only.modelmill("up")

    assert "install it: pip install 'modelmill[cli]'" in said


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("up", "server"),
        ("demo", "server"),
        ("api", "server"),
        ("worker", "server"),
        ("keys list", "server"),
        ("models --all", "tasks"),
        ("tasks", "tasks"),
        ("run text-embedding minilm text=a", "tasks"),
    ],
)
def test_a_command_that_needs_an_extra_names_it(with_cli: Installation, command: str, extra: str) -> None:
    said = with_cli.modelmill(command)

    expected = rf"The package (\w+) is missing; install it: pip install 'modelmill\[{extra}\]'$"
    found = re.search(expected, said)
    assert found, said
    assert EXTRAS[found[1]] == extra


def test_a_server_starts_with_the_extra_of_servers_alone(with_server: Installation) -> None:
    code = (
        "import modelmill_worker.app as node, modelmill_api.app as api\n"
        "print(len(api.create_app().openapi()['paths']) > 50, type(node.app.connection().transport).__name__)"
    )

    done = with_server.python("-c", code)

    assert (done.returncode, done.stdout) == (0, "True Transport\n"), done.stderr
    assert "install it: pip install 'modelmill[embedded]'" in with_server.modelmill("up --port 0").lower()
    assert "pip install 'modelmill[onnx,offline]'" in with_server.modelmill(
        "run text-embedding minilm text=a"
    )


def test_each_module_of_the_table_is_in_its_extra_and_in_no_installation_without_extras() -> None:
    holders: dict[str, set[str]] = {module: set() for module in EXTRAS}
    for each in distributions(path=[str(SITE)]):
        for top in {file.parts[0].removesuffix(".py").partition(".")[0] for file in each.files or ()}:
            if top in holders:
                holders[top].add(canonicalize_name(each.metadata["Name"]))

    wrong = [
        module
        for module, names in holders.items()
        if not names & needed_by("modelmill", EXTRAS[module]) or names & needed_by("modelmill")
    ]

    assert wrong == []
