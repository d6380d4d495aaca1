"""The wheel, installed by pip beside packages that carry the names of our folders, and removed again."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelmill import processes
from tests.support.paths import REPOSITORY
from tests.support.processes import wait_until

FOREIGN = ("api", "backends", "tasks", "worker")
"""Packages that other people install; this repository has folders of the same names."""
HOSTILE = ("api", "celery", "modelmill", "redis", "tasks")
"""Files in a user's working directory that have the names of packages."""
OURS = {"modelmill", *(f"modelmill_{name}" for name in ("api", "backends", "cli", "tasks", "worker"))}


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own, with everything installed that Modelmill depends on."""

    folder: Path

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def python(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / "python"), *arguments]
        return subprocess.run(
            command, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=120, check=False
        )

    def pip(self, command: str, *arguments: str) -> str:
        done = self.python("-m", "pip", command, "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *arguments: str) -> None:
        """Installs without a network: all dependencies are there already."""
        self.pip("install", "--no-index", "--no-build-isolation", *arguments)

    def files(self) -> dict[str, str]:
        """Every file of packages and programs with its hash. Links to the dependencies are left out."""
        found = {}
        for top in (self.packages, self.folder / "bin"):
            for path in sorted(top.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts and not path.is_symlink():
                    found[str(path.relative_to(self.folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def _environment() -> dict[str, str]:
    """The environment of a user: nothing in it says where the checkout is."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def make_environment(folder: Path) -> Environment:
    """A virtual environment whose dependencies are links to those of the interpreter that runs the tests.

    pip sees them as installed. Modelmill itself, which is installed there for development, is left out.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    environment = Environment(folder)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"modelmill|_editable_impl_modelmill|__pycache__", path.name):
            (environment.packages / path.name).symlink_to(path)
    return environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(target), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return next(target.glob("modelmill-*.whl"))


def install_foreign_packages(environment: Environment, folder: Path) -> None:
    for name in FOREIGN:
        package = folder / name / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"NAME = {name!r}\n")
        (package / "registry.py").write_text(f"NAME = '{name}.registry'\n")
        (folder / name / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "foreign-{name}"\nversion = "1.0"\n[tool.setuptools]\npackages = ["{name}"]\n'
        )
    environment.install("--no-deps", *(str(folder / name) for name in FOREIGN))


@pytest.fixture(scope="module")
def beside_others(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Foreign packages first, then our wheel; when the tests are over, pip removes the wheel again."""
    environment = make_environment(tmp_path_factory.mktemp("environment"))
    install_foreign_packages(environment, tmp_path_factory.mktemp("foreign"))
    before = environment.files()
    environment.install(f"{wheel}[standard]")

    yield environment

    environment.pip("uninstall", "--yes", "modelmill")
    assert environment.files() == before
    assert not list(environment.packages.glob("modelmill*"))
    assert not (environment.folder / "bin" / "modelmill").exists()


@pytest.mark.parametrize("hostile", [False, True], ids=["an empty folder", "a folder with our names"])
def test_the_readmes_first_submit_is_answered(
    beside_others: Environment, tmp_path: Path, cache_dir: Path, hostile: bool
) -> None:
    folder = tmp_path / "users-own"
    folder.mkdir()
    for name in HOSTILE if hostile else ():
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    program, port = str(beside_others.folder / "bin" / "modelmill"), processes.free_port()
    environment = _environment() | {
        "MODELMILL_CACHE_DIR": str(cache_dir),
        "MODELMILL_PORT": str(port),
        "MODELMILL_URL": f"http://127.0.0.1:{port}",
    }
    log = tmp_path / "up.log"

    with log.open("wb") as output:
        up = subprocess.Popen(
            [program, "up", "--data-dir", str(tmp_path / "data"), "--devices", "cpu"],
            cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: "Modelmill is up" in log.read_text() or up.poll() is not None, 60, "modelmill up")
        assert up.poll() is None, log.read_text()
        command = first_submit(program, beside_others.packages / "modelmill" / "data" / "chelsea.jpg")
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
    finally:
        processes.stop(up, grace_s=40)

    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
    assert re.search(r"cat\D+0?\.9", done.stdout), done.stdout


def first_submit(program: str, photo: Path) -> list[str]:
    """The README's first ``modelmill submit``, with the photo of the installed package."""
    text = (REPOSITORY / "README.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("modelmill submit"))
    words = line.split()
    assert "modelmill/data/chelsea.jpg" in words
    return [program, *(str(photo) if word.startswith("modelmill/") else word for word in words[1:])]


def test_foreign_packages_stay_what_they_were(beside_others: Environment) -> None:
    for name in FOREIGN:
        code = f"import {name}, {name}.registry; print({name}.NAME, {name}.registry.NAME)"

        done = beside_others.python("-c", code)

        assert done.stdout.split() == [name, f"{name}.registry"], done.stderr
    missing = beside_others.python("-m", "pip", "check").stdout.splitlines()
    assert not [line for line in missing if line.startswith("modelmill")]


def test_the_wheel_installs_only_names_that_begin_with_ours(beside_others: Environment) -> None:
    tops = {path.name for path in beside_others.packages.iterdir() if not path.is_symlink()}
    foreign = {name for name in tops if name in FOREIGN or name.startswith("foreign_")}

    assert {name for name in tops - foreign if "." not in name and name != "__pycache__"} == OURS
    assert all(name.startswith("modelmill") for name in tops - foreign - {"__pycache__"})


def test_the_names_of_our_folders_import_nothing(wheel: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "environment")
    environment.install("--no-deps", str(wheel))
    installed = (environment.folder / "bin" / "python", environment.folder)
    checkout = (Path(sys.executable), REPOSITORY)
    modules = ["api.app", "backends.registry", "cli.app", "tasks.registry", "worker.config"]

    for python, folder in (installed, checkout):
        done = subprocess.run(
            [python, "-c", IMPORT_BOTH, *modules],
            cwd=folder,
            env=_environment(),
            capture_output=True,
            text=True,
        )

        assert done.stdout.split() == [module.partition(".")[0] for module in modules], done.stderr


IMPORT_BOTH = """
import sys
from importlib import import_module

for module in sys.argv[1:]:
    import_module(f"modelmill_{module}")
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        print(error.name.partition(".")[0])
"""
"""Imports each module by its full name. Prints the part of the short name that is not there."""
