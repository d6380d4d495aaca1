"""`modelmill models`, `models pull`, `run` and `tasks`, as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelmill import processes
from modelmill.catalogue import Catalogue, ModelEntry, Source
from modelmill.errors import ConfigError
from modelmill_backends.conformance.compare import difference
from modelmill_backends.loader import load
from modelmill_cli.models import State, has_extra, state_of
from modelmill_cli.run import read_fields, show_task
from modelmill_tasks.registry import all_tasks, find_task
from tests.fixtures.hub import GATED, Hub, commit_of, serving
from tests.fixtures.tiny.faces import tiny_faces
from tests.fixtures.tiny.regions import tiny_vitpose, tiny_yolos
from tests.fixtures.tiny.text_to_image import tiny_sd
from tests.fixtures.tiny_models import tiny_vit
from tests.support.cli import modelmill, modelmill_here
from tests.support.paths import REPOSITORY

VIT = "someone/Tiny.ViT"
CAT = REPOSITORY / "modelmill" / "data" / "chelsea.jpg"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that also holds files that a load does not fetch."""
    folder = tiny_vit(tmp_path_factory.mktemp("vit"))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "run_me.py").write_text("raise SystemExit('code that came with weights')")
    return folder


@pytest.fixture
def hub(vit: Path) -> Iterator[Hub]:
    with serving({VIT: vit}) as running:
        yield running


@pytest.fixture
def run(cache_dir: Path) -> Run:
    """``run("models", "--all", COLUMNS="80")``: the command line, in this process."""
    return partial(modelmill_here, MODELMILL_CACHE_DIR=str(cache_dir))


@pytest.fixture
def run_apart(cache_dir: Path) -> Run:
    """``run_apart("models", HF_HOME=…)``: in a process of its own.

    The hub's library reads its variables when it is imported.
    """
    return partial(modelmill, MODELMILL_CACHE_DIR=str(cache_dir))


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_was_pulled_loads_when_the_hub_is_gone(
    run_apart: Run, hub: Hub, vit: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        f'[models.my-vit]\nbackend = "transformers"\ntasks = ["image-classification"]\n'
        f'source = {{ hub = "{VIT}", revision = "{commit_of(vit)}" }}\nmemory_mib = 1\n'
    )
    online = hub.environment(tmp_path / "hub") | {"MODELMILL_MODELS_FILE": str(models)}
    offline = online | {"HF_HUB_OFFLINE": "1"}

    def state() -> str:
        listed = answer(run_apart("models", "--json", **offline))
        return str(next(model["state"] for model in listed if model["name"] == "my-vit"))

    assert state() == "to_fetch"
    pulled = run_apart("models", "pull", "my-vit", **online)
    assert pulled.returncode == 0, pulled.stderr
    name, _, where = pulled.stdout.strip().partition(": ")
    size, _, folder = where.partition(" in ")
    assert (name, size.rpartition(" ")[2]) == ("my-vit", "KiB")
    assert sorted(file.name for file in Path(folder).iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert "files: 100%" in pulled.stderr, "there is a progress bar"
    assert state() == "installed"
    hub.close()
    with load(vit) as direct:
        expected = direct.run("image-classification", image=CAT).model_dump(mode="json")
    found = answer(run_apart("run", "image-classification", "my-vit", f"image=@{CAT}", **offline))
    # It ran in another process with another number of threads: the last digits may differ.
    assert difference(found, expected, 1e-6) is None


def test_of_a_model_made_of_several_all_are_pulled(run_apart: Run, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    folder = tiny_faces(tmp_path / "faces", fixed=True)
    for name in ("detector", "recognizer"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / f"{name}.onnx", tmp_path / name)
        hub.repositories[f"someone/{name}"] = tmp_path / name
    hub.repositories |= {
        "someone/pose": tiny_vitpose(tmp_path / "pose"),
        "someone/yolos": tiny_yolos(tmp_path / "yolos"),
    }
    models = tmp_path / "models.toml"
    models.write_text("""
        [models.faces]
        backend = "onnx"
        source = { hub = "someone/recognizer" }
        tasks = ["face-embedding"]
        [models.faces.options]
        detector_hub = "someone/detector"
        detector = "detector.onnx"
        recognizer = "recognizer.onnx"
        [models.pose]
        backend = "transformers"
        source = { hub = "someone/pose" }
        tasks = ["keypoint-detection"]
        options = { detector = "people" }
        [models.people]
        backend = "transformers"
        source = { hub = "someone/yolos" }
        tasks = ["object-detection"]
    """)
    environment = hub.environment(tmp_path / "hub") | {"MODELMILL_MODELS_FILE": str(models)}

    pulled = run_apart("models", "pull", "faces", "pose", **environment)

    assert pulled.returncode == 0, pulled.stderr
    assert [
        re.sub(r": .*/models--someone--(\w+)/.*", r" \1", line) for line in pulled.stdout.splitlines()
    ] == [
        "faces detector",
        "faces recognizer",
        "pose yolos",
        "pose pose",
    ]


def test_of_a_pipeline_only_the_files_that_belong_together_are_pulled(
    run_apart: Run, hub: Hub, tmp_path: Path
) -> None:
    folder = tiny_sd(tmp_path / "sd")
    (folder / "all-in-one.safetensors").write_bytes(b"the same once more")
    hub.repositories["someone/sd"] = folder

    pulled = run_apart("models", "pull", "someone/sd", **hub.environment(tmp_path / "hub"))

    assert pulled.returncode == 0, pulled.stderr
    assert not [path for path in hub.asked if "all-in-one" in path]
    hub.close()
    with load(Path(pulled.stdout.strip().rpartition(" in ")[2])) as model:
        output = model.run("text-to-image", prompt="a cat", config={"num_inference_steps": 2, "seed": 1})
    assert output.model_dump()["images"][0]["image"].startswith("data:image/")


def test_a_hub_id_runs_without_an_entry(run_apart: Run, hub: Hub, vit: Path, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "hub")

    asked = run_apart("run", "image-classification", VIT, f"image=@{CAT}", f"image=@{CAT}", **environment)

    with load(vit) as direct:
        expected = direct.run("image-classification", image=CAT).model_dump(mode="json")
    assert [difference(found, expected, 1e-4) for found in answer(asked)] == [None, None]
    assert not [path for path in hub.asked if path.endswith((".bin", ".py"))]


def test_a_hub_that_gives_nothing_is_told_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    code = f"""
from modelmill_backends.source import locate
from modelmill.catalogue import Catalogue, ModelEntry, Source
from modelmill.errors import ModelmillError
for hub, revision in (("no/such", None), ("{GATED}", None), ("{VIT}", "0" * 40), ("{VIT}", "v2")):
    source = Source(hub=hub, revision=revision)
    try:
        locate(ModelEntry(name="thing", backend="onnx", source=source, tasks=("t",)))
    except ModelmillError as error:
        print(error.message.removeprefix("Model thing: "))
"""
    done = subprocess.run(
        processes.python("-c", code),
        env=os.environ | hub.environment(tmp_path),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == [
        "the Hugging Face hub has no no/such, or it is private and HF_TOKEN is not set",
        (
            f"{GATED} requires that you accept its terms: accept them on its page at "
            "the Hugging Face hub, and set HF_TOKEN where it is loaded"
        ),
        f"{VIT} has no revision {'0' * 40} at the Hugging Face hub",
        f"{VIT} has no revision v2 at the Hugging Face hub",
    ], done.stderr


def test_pulling_without_a_connection_fails_with_what_to_do(run_apart: Run, hub: Hub, tmp_path: Path) -> None:
    done = run_apart("models", "pull", "clip-vit-base-patch32", **hub.environment(tmp_path, offline=True))

    assert done.returncode == 1
    assert done.stdout == ""
    assert "openai/clip-vit-base-patch32 is not in the local cache" in done.stderr


def test_pulling_what_comes_from_no_hub_says_so(run: Run) -> None:
    done = run("models", "pull", "minilm")

    assert (done.returncode, done.stdout) == (0, "minilm: nothing to fetch, it does not come from a hub\n")


def test_pulling_an_unknown_model_names_near_ones(run: Run) -> None:
    done = run("models", "pull", "mini-lm")

    assert done.returncode == 1
    assert "There is no model 'mini-lm'. Did you mean minilm" in done.stderr


def test_the_catalogue_is_listed_with_what_this_machine_can_run(run: Run, tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        '[models.giant]\nbackend = "onnx"\ntasks = ["text-embedding"]\nmemory_mib = 1_000_000_000\n'
        '[models.gone]\nbackend = "onnx"\ntasks = ["text-embedding"]\nsource = { folder = "gone" }\n'
        '[models.with-extra]\nbackend = "onnx"\ntasks = ["text-embedding"]\nrequires = ["dev", "diffusers"]\n'
    )

    listed = answer(run("models", "--json", MODELMILL_MODELS_FILE=str(models)))

    states = {model["name"]: model["state"] for model in listed}
    assert states["minilm"] == states["efficientnet-lite0"] == "installed"
    assert states["giant"] == "does_not_fit"
    assert states["gone"] == "missing_packages"
    table = run("models", "--all", "--task", "text-embedding", MODELMILL_MODELS_FILE=str(models))
    assert table.returncode == 0
    (row,) = [line for line in table.stdout.splitlines() if line.startswith("minilm ")]
    about = ["450 MiB", "installed", "onnx", "Apache-2.0"]
    assert re.split(" {2,}", row)[1:5] == about
    assert "takes 1000000000 MiB, here are " in table.stdout
    assert "efficientnet-lite0" not in table.stdout


def test_on_a_narrow_terminal_a_model_takes_a_line(run: Run) -> None:
    names = Catalogue.load().keys()

    every = run("models", "--all", COLUMNS="80").stdout.splitlines()
    local = run("models", "--url", "http://127.0.0.1:1", COLUMNS="80").stdout.splitlines()

    for lines in (every, local):
        assert all(any(line.startswith(f"{name} ") for line in lines) for name in names), "no name is cut"
        assert "…" not in "".join(lines)
    assert len(every) <= 1.2 * len(names)
    assert len(local) <= 2 * len(names)


@pytest.fixture
def of_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed modelmill with the extras "here" and "half-here", and "all", which contains both."""
    folder = tmp_path / "modelmill-99.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: modelmill\nVersion: 99\n"
        "Requires-Dist: pytest>=1; extra == 'here'\n"
        "Requires-Dist: no-such-distribution>=1 ; extra == 'half-here'\n"
        "Requires-Dist: pydantic>=2; extra == 'half-here'\n"
        "Requires-Dist: concurrent; extra == 'by-module'\n"
        "Requires-Dist: modelmill[here,half-here]; extra == 'all'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    has_extra.cache_clear()
    yield
    has_extra.cache_clear()


@pytest.mark.usefixtures("of_extras")
def test_an_extra_is_there_when_all_its_packages_are() -> None:
    assert has_extra("here")
    assert not has_extra("half-here")
    assert has_extra("by-module"), "a package may be built under another name than it is imported by"
    assert not has_extra("all")


@pytest.mark.usefixtures("of_extras")
@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"requires": ("here",)}, "installed", "installed"),
        ({"requires": ("here", "all")}, "missing_packages", "needs pip install 'modelmill[all]'"),
        ({"memory_mib": 1001}, "does_not_fit", "does not fit: takes 1001 MiB, here are 1000"),
        ({"memory_mib": 1001, "devices": ("cuda",)}, "does_not_fit", "does not fit: runs on cuda only"),
        ({"source": Source(package="pytest")}, "installed", "installed"),
        ({"source": Source(package="no_such")}, "missing_packages", "its package or folder is missing"),
    ],
)
def test_a_state_says_what_to_do(fields: dict[str, Any], code: str, text: str) -> None:
    entry = ModelEntry(name="thing", backend="onnx", tasks=("text-embedding",), **fields)

    assert state_of(entry, {"cpu": 1000}) == State(code, text)


def test_the_larger_memory_counts_among_the_devices_that_a_model_runs_on() -> None:
    entry = ModelEntry(name="thing", backend="onnx", tasks=("t",), memory_mib=5000)

    assert state_of(entry, {"cpu": 1000, "cuda": 8000}).code == "installed"
    assert state_of(entry.model_copy(update={"devices": ("cpu",)}), {"cpu": 1000, "cuda": 8000}).code == (
        "does_not_fit"
    )


@pytest.mark.parametrize(
    ("fields", "inputs"),
    [
        (["text=hello"], {"text": "hello"}),
        (["text=a", "text=b"], {"text": ["a", "b"]}),
        (
            ['text:=["a", "b"]', "config.normalize=false"],
            {"text": ["a", "b"], "config": {"normalize": "false"}},
        ),
        (["text=x=y:=@z"], {"text": "x=y:=@z"}),
        (["text=@note.txt"], {"text": "from a file"}),
        (["text:=@note.json"], {"text": ["from", "JSON"]}),
    ],
)
def test_fields_are_text_json_or_files(
    fields: list[str], inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note.txt").write_text("from a file")
    (tmp_path / "note.json").write_text('["from", "JSON"]')
    monkeypatch.chdir(tmp_path)

    assert read_fields(find_task("text-embedding"), fields) == inputs


def test_one_value_of_a_field_inside_another_is_a_list_where_the_field_is_one() -> None:
    task = find_task("text-generation")

    assert read_fields(task, ["config.stop=END", "config.top_k=5"]) == {
        "config": {"stop": ["END"], "top_k": "5"}
    }


def test_one_class_is_a_list_of_one_and_a_file_of_a_media_field_stays_a_file() -> None:
    task = find_task("zero-shot-image-classification")

    assert read_fields(task, ["classes=cat", f"image=@{CAT}"]) == {"classes": ["cat"], "image": CAT}


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("hello", "'hello' is not a field: write text=hello"),
        ("text:=hello", "text: the text after := is not JSON"),
        ("text=@nowhere.txt", "text: there is no file nowhere.txt"),
        (f"text=@{CAT}", "is not a text file"),
        ("text=a text.b=c", "text was given a value of its own"),
    ],
)
def test_what_is_no_field_is_told(field: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_fields(find_task("text-embedding"), field.split())

    assert said in str(caught.value)


def test_a_run_prints_json_and_nothing_else(run: Run) -> None:
    with load("minilm") as model:
        expected = [each.model_dump(mode="json") for each in model("text-embedding", text=["hello", "there"])]

    found = answer(run("run", "text-embedding", "minilm", "text=hello", "text=there"))
    assert difference(found, expected, 1e-6) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["text-embedding", "minilm", "txt=hello"], "invalid_input: text: Field required"),
        (["text-embeding", "minilm", "text=hello"], "Did you mean text-embedding"),
        (["text-embedding", "mini-lm", "text=hello"], "Did you mean minilm"),
        (
            ["image-classification", "minilm", f"image=@{CAT}"],
            "does not answer image-classification; it answers",
        ),
        (["text-embedding", "minilm", "text=a", "text="], "invalid_input: Item 1: text: "),
    ],
)
def test_a_run_that_fails_says_why_and_exits_with_1(run: Run, arguments: list[str], said: str) -> None:
    done = run("run", *arguments)

    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_tasks_are_listed_and_one_is_shown_with_its_fields(run: Run) -> None:
    listed = run("tasks")
    shown = run("tasks", "zero-shot-image-classification")

    for task in all_tasks().values():
        assert task.name in listed.stdout
        assert task.summary in listed.stdout
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.stdout.splitlines()]
    takes = {row[0]: row[1:3] for row in cells if len(row) == 4}
    assert takes["image"] == ["image", "required"]
    assert takes["classes"] == ["list of text", "required"]
    assert takes["config.multi_label"] == ["boolean", "null"]


@pytest.mark.parametrize("name", all_tasks())
def test_every_task_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_task(name)

    shown = capsys.readouterr().out
    assert all(field in shown for field in find_task(name).batched_fields)
