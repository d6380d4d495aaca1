"""The example plugin, installed as a user installs it: found, checked, answering. And broken plugins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelmill import processes
from modelmill.client import Client
from modelmill.errors import ConfigError
from modelmill_cli.check import check_package
from tests.support.paths import REPOSITORY
from tests.support.system import start_up

EXAMPLE = REPOSITORY / "examples" / "modelmill-readability"

BROKEN_RUNNERS = '''
from modelmill.plugin import LoadContext, Prepared, Runner
from modelmill_tasks.text_embedding import Input, Output


class Sloppy(Runner[Input, None]):
    """Gives each item of a batch what only the first should get."""

    backend = "sloppy"
    task = "text-embedding"

    @classmethod
    def load(cls, context: LoadContext) -> None:
        return None

    def group_key(self, item):
        return ()

    def preprocess(self, item):
        return Prepared(item, [float(len(item.text)), 1.0])

    def forward(self, batch):
        return [batch[0].data for _ in batch]

    def postprocess(self, prepared, raw):
        return Output(embedding=raw)


class Unproved(Sloppy):
    backend = "unproved"


class Unloadable(Sloppy):
    backend = "unloadable"

    @classmethod
    def load(cls, context: LoadContext) -> None:
        raise OSError("weights [/bold] are missing")
'''

BROKEN_SPECIMENS = """
from modelmill.plugin import ModelEntry, Specimen


def entry(backend):
    return lambda folder: ModelEntry(name="any", backend=backend, tasks=("text-embedding",))


SPECIMENS = (
    Specimen("sloppy-one", "text-embedding", entry("sloppy")),
    Specimen("unloadable-one", "text-embedding", entry("unloadable")),
)
"""

BUILT_IN_SPECIMENS = """
from modelmill.plugin import ModelEntry, Specimen

TASK = "zero-shot-image-classification"
SPECIMENS = [Specimen("nothing", TASK, lambda folder: ModelEntry(name="any", backend="noop", tasks=(TASK,)))]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds the example plugin."""
    # A copy, because the build leaves files behind.
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "plugin")
    site = tmp_path_factory.mktemp("site")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
        *("--no-deps", "--no-build-isolation", "--target", str(site), str(source)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return site


def a_package(site: Path, name: str, entry_points: str, **modules: str) -> Path:
    """Puts an installed package into ``site``, as pip does."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)
    return site


def modelmill(site: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(site or "")}
    command = processes.python("-m", "modelmill_cli", *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def first_block(page: str, language: str) -> str:
    """The first code block in that language on a page of the docs."""
    return page.split(f"```{language}\n")[1].split("```")[0]


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The output without line breaks, which depend on the terminal."""
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join((done.stdout + done.stderr).split())


def test_an_installed_plugin_and_the_function_of_the_docs_answer_jobs(
    installed: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "plugins.md").read_text()
    (tmp_path / "my_models.py").write_text(first_block(page, "python"))
    (tmp_path / "models.toml").write_text(first_block(page, "toml"))
    monkeypatch.setenv("PYTHONPATH", f"{installed}{os.pathsep}{tmp_path}")
    up = start_up(tmp_path, cache_dir, "--devices", "cpu", "--models-file", str(tmp_path / "models.toml"))
    try:
        with Client(up.url) as client:
            one = client.run(
                "readability", "flesch-english", {"text": "The cat sat on the mat. It was happy."}
            )
            german = client.run("readability", "flesch-german", {"text": "Die Katze sitzt auf der Matte."})
            batch: dict[str, Any] = {
                "text": ["It is a mile.", "1 + 1", "Readability."],
                "config": {"per_sentence": True},
            }
            document = client.submit("readability", "flesch-english", batch, batched=True).wait(30).document
            long = {"input": "It was a long night.", "config": {"length": 6}}
            short = client.run("custom", "shorten", long)
    finally:
        processes.stop(up.process, grace_s=40)
    # By hand: 206.835 - 1.015 * 9/2 - 84.6 * 10/9, and 180 - 6 - 58.5 * 8/6.
    assert one == {
        "reading_ease": 108.2675,
        "words": 9,
        "sentences": 2,
        "syllables": 10,
        "per_sentence": None,
    }
    assert german["reading_ease"] == 96.0
    mile, none, word = document["result"]
    assert (document["items"], document["failed_items"]) == (3, 1)
    assert mile["per_sentence"] == [{"sentence": "It is a mile.", "reading_ease": mile["reading_ease"]}]
    assert none["error"] == {"code": "invalid_input", "message": "text: holds no word"} | {
        key: none["error"][key] for key in none["error"].keys() - {"code", "message"}
    }
    assert word["syllables"] == 5
    assert short == {"output": {"text": "It was", "was": 20}}


def test_its_task_s_example_is_what_its_model_answers(installed: Path) -> None:
    code = (
        "import modelmill_backends.loader as loader\n"
        "from modelmill_tasks.registry import find_task\n"
        "example = find_task('readability').example\n"
        "(output,) = loader.load(example.model).answer('readability', example.input)\n"
        "assert output.model_dump() == example.output, output\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = processes.python("-c", code)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


IMPORTED_BY_THE_API = """
import sys

from modelmill.settings import Settings
from modelmill_api.app import create_app


def backends():
    return [name for name in sys.modules if name.partition(".")[0] == "modelmill_backends"]


paths = create_app(Settings()).openapi()["paths"]
assert "/api/tasks/readability/{model}/jobs" in paths, list(paths)
assert "modelmill.plugin" in sys.modules
assert not backends(), backends()

from modelmill.plugin import Runner

assert backends()
"""


def test_an_api_that_serves_its_task_imports_no_backend(installed: Path) -> None:
    done = subprocess.run(
        processes.python("-c", IMPORTED_BY_THE_API),
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr


def test_its_models_are_listed(installed: Path) -> None:
    done = modelmill(installed, "models", "--url", "http://127.0.0.1:1")

    assert "flesch-english" in done.stdout
    assert "flesch-german" in done.stdout


@pytest.mark.parametrize("name", ["modelmill-readability", "modelmill_readability"])
def test_it_passes_the_checks(installed: Path, name: str) -> None:
    done = modelmill(installed, "check", name)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "modelmill-readability 0.1.0, 2 specimens: 12 checks passed, 0 failed." in said(done)
    assert "warning" not in done.stderr


def test_a_plugin_that_mixes_up_a_batch_fails_the_checks(tmp_path: Path) -> None:
    points = (
        "[modelmill.runners]\nsloppy = sloppy_runners\n"
        "[modelmill.specimens]\nsloppy = sloppy_specimens:SPECIMENS\n"
    )
    site = a_package(
        tmp_path, "sloppy", points, sloppy_runners=BROKEN_RUNNERS, sloppy_specimens=BROKEN_SPECIMENS
    )

    done = modelmill(site, "check", "sloppy")
    text = said(done)

    assert done.returncode == 1
    row = next(line for line in done.stdout.splitlines() if "a batch is answered as its items alone" in line)
    assert "failed: item 1.embedding[0] is" in row
    assert "(in a batch of 16, compared with alone)" in row
    assert "skipped: the specimen has no reference" in text
    assert "the model loads" in text
    assert "OSError: weights [/bold] are missing" in text
    assert "2 specimens: 3 checks passed, 2 failed." in text
    assert "warning: no specimen proves sloppy_runners:Unproved (backend unproved" in text
    assert text.count("warning") == 1


def test_where_a_check_failed_is_shown_when_asked(tmp_path: Path) -> None:
    points = (
        "[modelmill.runners]\nsloppy = sloppy_runners\n"
        "[modelmill.specimens]\nsloppy = sloppy_specimens:SPECIMENS\n"
    )
    site = a_package(
        tmp_path, "sloppy", points, sloppy_runners=BROKEN_RUNNERS, sloppy_specimens=BROKEN_SPECIMENS
    )

    done = modelmill(site, "check", "sloppy", "--traceback")

    assert "sloppy_runners.py" in done.stderr
    assert "weights [/bold] are missing" in done.stderr


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ("", "thing has no specimens, so its runners cannot be checked. Write a list"),
        ("[modelmill.specimens]\na = thing_module:EMPTY\n", "thing has no specimens"),
        ("[modelmill.specimens]\na = thing_module:NUMBERS\n", "'a' (thing_module:NUMBERS) is not a list"),
        ("[modelmill.specimens]\na = nowhere:X\n", "'a' (nowhere:X) cannot be imported: ModuleNotFound"),
        ("[modelmill.specimens]\na = thing_module:X\n", "cannot be imported: AttributeError"),
    ],
)
def test_a_package_without_specimens_is_told_what_to_do(tmp_path: Path, points: str, sentence: str) -> None:
    site = a_package(tmp_path, "thing", points, thing_module="EMPTY = ()\nNUMBERS = [1, 2]\n")

    done = modelmill(site, "check", "thing")

    assert done.returncode == 1
    assert sentence in said(done)


def test_of_several_runners_the_one_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = (
        "[modelmill.runners]\na-good-one = two_runners\nbroken = two_runners:Gone\n"
        "[modelmill.specimens]\ntwo = two_specimens:SPECIMENS\n"
    )
    site = a_package(tmp_path, "two", points, two_runners=BROKEN_RUNNERS, two_specimens=BUILT_IN_SPECIMENS)
    monkeypatch.syspath_prepend(site)

    with pytest.raises(
        ConfigError, match=r"'broken' \(two_runners:Gone\) cannot be imported: AttributeError"
    ):
        check_package("two", with_traceback=True)


def test_a_package_that_is_not_installed_is_told_so() -> None:
    done = modelmill(None, "check", "no-such-plugin")

    assert done.returncode == 1
    assert "No package 'no-such-plugin' is installed here. Install it first" in said(done)


MODELS = '[models.{}]\nbackend = "noop"\ntasks = ["text-embedding"]\naliases = ["{}"]\n'
LIST = (
    "from modelmill.catalogue import Catalogue\n"
    "for name, entry in Catalogue.load().items():\n"
    "    print(name, entry.backend, *entry.aliases)\n"
)


def catalogue(site: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        processes.python("-c", LIST), env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_plugin_adds_models_and_replaces_none(tmp_path: Path) -> None:
    site = a_package(tmp_path, "more", "[modelmill.models]\nmore = more_models:models.toml\n")
    (site / "more_models").mkdir()
    (site / "more_models" / "__init__.py").write_text("raise SystemExit('data are not imported')\n")
    (site / "more_models" / "models.toml").write_text(
        MODELS.format("more-one", "sentence-transformers/all-MiniLM-L6-v2")
        + MODELS.format("minilm", "someone/else")
    )

    done = catalogue(site)

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[-1] == "more-one noop"
    assert "minilm onnx sentence-transformers/all-MiniLM-L6-v2" in lines
    assert "its model minilm is left out: there already is a model of this name" in done.stderr


BROKEN_MODELS = {
    "more_models:models.toml": "there is no such file",
    "no_such_package": "there is no such file",
    "more_models.deep:x.toml": "there is no such file",
    "more_models:text.toml": "not valid TOML",
    "more_models:wrong.toml": "line 2: model 'wrong': backendd",
    "more_models:twins.toml": "both have the alias 'twin'",
}
LISTS_TASKS_AND_MODELS = (
    "from modelmill.catalogue import Catalogue\n"
    "from modelmill_backends.registry import all_runners\n"
    "from modelmill_tasks.registry import all_tasks\n"
    "print('minilm' in Catalogue.load(), 'text-embedding' in all_tasks(), len(all_runners()) > 30)\n"
)


@pytest.mark.parametrize("value", BROKEN_MODELS)
def test_a_plugin_whose_models_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path, value: str) -> None:
    site = a_package(tmp_path, "more", f"[modelmill.models]\nours = {value}\n")
    (site / "more_models").mkdir()
    (site / "more_models" / "text.toml").write_text("no table")
    (site / "more_models" / "wrong.toml").write_text("[models.wrong]\nbackendd = 1\n")
    (site / "more_models" / "twins.toml").write_text(
        MODELS.format("one-twin", "twin") + MODELS.format("two-twin", "twin")
    )

    done = modelmill(site, "models", "--url", "http://127.0.0.1:1")

    assert done.returncode == 0, done.stderr
    assert "minilm" in done.stdout
    text = said(done)
    assert f"the entry point 'ours' of more in the group modelmill.models ({value}) is left out: " in text
    assert BROKEN_MODELS[value] in text


def test_plugins_whose_code_cannot_be_imported_are_left_out_each_with_the_reason(tmp_path: Path) -> None:
    points = (
        "[modelmill.tasks]\ngone = no_such_module:TASK\nlist = broken_code:NUMBERS\n"
        "mine = broken_code:TEXT_EMBEDDING\n"
        "[modelmill.runners]\nexits = broken_code:missing\n"
    )
    site = a_package(
        tmp_path,
        "broken",
        points,
        broken_code="from modelmill_tasks.text_embedding import TASK\n"
        "from dataclasses import replace\nNUMBERS = [1]\n"
        "TEXT_EMBEDDING = replace(TASK, summary='another')\n",
    )

    done = subprocess.run(
        processes.python("-c", LISTS_TASKS_AND_MODELS),
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, "True True True\n"), done.stderr
    for reason in (
        "'gone' of broken in the group modelmill.tasks (no_such_module:TASK) is left out: ModuleNotFound",
        "'list' of broken in the group modelmill.tasks (broken_code:NUMBERS) is left out: TypeError",
        "(broken_code:TEXT_EMBEDDING) is left out: there already is a task of the name text-embedding",
        "'exits' of broken in the group modelmill.runners (broken_code:missing) is left out: AttributeError",
    ):
        assert reason in done.stderr
