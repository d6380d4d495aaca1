from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
import pytest
from PIL import Image

import modelmill
from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.inputs import parse
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.registry import find_task
from modelmill_tasks.text_embedding import Input, Output
from tests.fixtures.photos import data_url, photo
from tests.support.models import ZERO_SHOT, OpenModel

ROOT = Path(__file__).parents[2]
CAT = ROOT / "modelmill" / "data" / "chelsea.jpg"


class LettersRunner(Runner[Input, list[list[str]]]):
    """Embeds a text as its length; its weights keep the batches. It fails on some words."""

    backend = "test"
    task = "text-embedding"

    @classmethod
    def load(cls, context: LoadContext) -> list[list[str]]:
        if context.entry.options.get("broken"):
            raise KeyError("no such layer")
        return []

    def preprocess(self, item: Input) -> Prepared[Input]:
        if item.text == "refused":
            raise ModelmillError(ErrorCode.INVALID_INPUT, "text: is refused")
        if item.text == "surprising":
            raise ZeroDivisionError("division by zero")
        return Prepared(item, item.text, cost=2.0 if item.text.startswith("long") else 1.0)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        self.weights.append([prepared.data for prepared in batch])
        if "crashing" in self.weights[-1]:
            raise RuntimeError("shapes do not match")
        return [len(prepared.data) for prepared in batch]

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return Output(embedding=[float(raw)])


@pytest.fixture
def letters(context_of: Callable[..., LoadContext]) -> Callable[..., LoadedModel]:
    """The model of ``LettersRunner``, with a ``max_batch`` of 4."""

    def make(**options: Any) -> LoadedModel:
        entry = ModelEntry(
            name="letters",
            backend="test",
            runner=f"{__name__}:LettersRunner",
            tasks=("text-embedding",),
            max_batch=4,
            options=options,
        )
        return LoadedModel(context_of(entry))

    return make


@pytest.fixture
def in_session_cache(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``modelmill.load`` finds the exports of this session."""
    monkeypatch.setattr("modelmill_backends.loader.get_settings", lambda: settings)


def refusal(call: Callable[[], Any]) -> ModelmillError:
    with pytest.raises(ModelmillError) as caught:
        call()
    return caught.value


def batches(model: LoadedModel) -> list[list[str]]:
    found: list[list[str]] = model.runner("text-embedding").weights
    return found


def test_importing_backends_imports_next_to_nothing() -> None:
    code = "import modelmill_backends, json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    imported = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert {"torch", "transformers", "onnxruntime", "numpy", "PIL", "pydantic"}.isdisjoint(imported)


def test_what_modelmill_offers_is_there_and_nothing_else() -> None:
    for name in modelmill.__all__:
        assert getattr(modelmill, name)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        modelmill.lod  # noqa: B018


def test_one_input_gives_one_output_and_a_list_a_list(letters: Callable[..., LoadedModel]) -> None:
    model = letters()

    assert model.run("text-embedding", text="four") == Output(embedding=[4.0])
    assert model.run("text-embedding", text=["four"]) == [Output(embedding=[4.0])]
    assert model.run(text=["a", "bb"]) == model(text=["a", "bb"])
    assert [output.embedding for output in model(text=["a", "bb"])] == [[1.0], [2.0]]
    assert model(text=[]) == []


def test_many_items_run_in_batches_of_the_models_size(letters: Callable[..., LoadedModel]) -> None:
    model = letters()

    outputs = model(text=["x" * (1 + index) for index in range(10)])

    assert [output.embedding for output in outputs] == [[float(1 + index)] for index in range(10)]
    assert [len(batch) for batch in batches(model)] == [4, 4, 2]


def test_costly_items_share_a_batch_with_fewer(letters: Callable[..., LoadedModel]) -> None:
    model = letters()

    model(text=["long 1", "long 2", "long 3", "short"])

    assert batches(model) == [["long 1", "long 2"], ["long 3", "short"]]


def test_more_items_than_a_batched_job_may_hold_are_no_matter(letters: Callable[..., LoadedModel]) -> None:
    assert len(letters()(text=["x"] * 1500)) == 1500


@pytest.mark.parametrize(
    ("bad", "code", "said"),
    [
        ("", ErrorCode.INVALID_INPUT, "Item 5: text: String should have at least 1 character"),
        (7, ErrorCode.INVALID_INPUT, "Item 5: text: Input should be a valid string"),
        ("refused", ErrorCode.INVALID_INPUT, "Item 5: text: is refused"),
        (
            "surprising",
            ErrorCode.INFERENCE_FAILED,
            "Item 5: The model failed on this input: ZeroDivisionError: division by zero",
        ),
        (
            "crashing",
            ErrorCode.INFERENCE_FAILED,
            "The model failed on this input: RuntimeError: shapes do not match",
        ),
    ],
)
def test_a_bad_item_ends_the_call_and_is_named(
    letters: Callable[..., LoadedModel], bad: Any, code: ErrorCode, said: str
) -> None:
    error = refusal(lambda: letters()(text=["ok"] * 5 + [bad] + ["ok"] * 5))

    assert (error.code, error.message) == (code, said)


def test_a_single_bad_input_needs_no_number(letters: Callable[..., LoadedModel]) -> None:
    error = refusal(lambda: letters()(text=""))

    assert error.message.startswith("text: ")
    assert [field.field for field in error.fields] == ["text"]


def test_inputs_are_looked_at_before_anything_is_loaded(letters: Callable[..., LoadedModel]) -> None:
    broken = letters(broken=True)

    assert refusal(lambda: broken(txt="x")).code is ErrorCode.INVALID_INPUT
    error = refusal(lambda: broken(text="x"))
    assert error.code is ErrorCode.MODEL_LOAD_FAILED
    assert error.message == "Model letters: KeyError: 'no such layer'"


def test_a_task_that_the_model_does_not_answer_is_told_with_those_that_it_does(
    letters: Callable[..., LoadedModel],
) -> None:
    error = refusal(lambda: letters().run("image-classification", image="x"))

    assert error.code is ErrorCode.TASK_NOT_SUPPORTED
    assert error.message == "Model letters does not answer image-classification; it answers text-embedding."
    assert refusal(lambda: letters().run("text-embeding")).code is ErrorCode.TASK_NOT_FOUND


def test_a_model_of_several_tasks_wants_one_named(context_of: Callable[..., LoadContext]) -> None:
    entry = ModelEntry(name="both", backend="test", tasks=("text-embedding", "image-classification"))

    error = refusal(lambda: LoadedModel(context_of(entry)).run(text="x"))

    assert error.message == (
        "Model both answers several tasks; name one as the first argument: "
        "text-embedding, image-classification."
    )


def as_bytes() -> bytes:
    return CAT.read_bytes()


def as_png() -> bytes:
    buffer = io.BytesIO()
    Image.open(CAT).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda: CAT, id="path"),
        pytest.param(as_bytes, id="bytes"),
        pytest.param(lambda: bytearray(as_bytes()), id="bytearray"),
        pytest.param(as_png, id="PNG bytes"),
        pytest.param(lambda: Image.open(CAT), id="Pillow"),
        pytest.param(lambda: Image.open(CAT).convert("RGBA"), id="Pillow RGBA"),
        pytest.param(lambda: pybase64.b64encode_as_string(as_bytes()), id="base64"),
        pytest.param(lambda: data_url(Image.open(CAT), "PNG"), id="data URL"),
    ],
)
def test_an_image_may_come_in_many_forms(image: Callable[[], Any], open_model: OpenModel) -> None:
    model = open_model("efficientnet-lite0")

    expected = model.answer("image-classification", {"image": data_url(Image.open(CAT), "PNG")})[0]
    assert model("image-classification", image=image()) == expected
    assert model("image-classification", image=[image(), image()]) == [expected, expected]


def test_a_pillow_image_is_turned_upright_as_a_file_would_be(open_model: OpenModel) -> None:
    model = partial(open_model("efficientnet-lite0").run, "image-classification")
    on_its_side = photo("chelsea").rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it by 90 degrees clockwise
    buffer = io.BytesIO()
    on_its_side.save(buffer, "PNG", exif=exif)

    assert model(image=Image.open(buffer)) == model(image=buffer.getvalue()) == model(image=photo("chelsea"))


def test_other_fields_are_shared_or_one_an_item(open_model: OpenModel) -> None:
    model = partial(open_model("conse-lite0").run, ZERO_SHOT)
    photos = [photo("chelsea"), photo("coffee")]

    shared = model(image=photos, classes=["cat", "cup of coffee"])
    each = model(image=photos, classes=[["cat", "dog"], ["cat", "cup of coffee", "rocket"]])

    assert [output.probabilities.index(max(output.probabilities)) for output in shared] == [0, 1]
    assert [len(output.probabilities) for output in each] == [2, 3]
    assert each[0] == model(image=photos[0], classes=["cat", "dog"])
    error = refusal(lambda: model(image=photos, classes=[["cat"]]))
    assert error.message == "classes: has 1 values, but image has 2"


@pytest.mark.parametrize(
    ("inputs", "code", "said"),
    [
        ({"image": b"no image"}, ErrorCode.INVALID_MEDIA, "image: The bytes are not an image"),
        (
            {"image": Path("/no/such.jpg")},
            ErrorCode.INVALID_INPUT,
            "image: the file /no/such.jpg cannot be read",
        ),
        ({"image": "cat.jpg"}, ErrorCode.INVALID_MEDIA, "image: The text is neither a data URL nor base64."),
        ({"image": CAT, "classes": [CAT]}, ErrorCode.INVALID_INPUT, "classes: takes no image, sound or file"),
        ({"image": CAT, "classes": {1}}, ErrorCode.INVALID_INPUT, "classes.0: "),
        (
            {"image": CAT, "classes": object()},
            ErrorCode.INVALID_INPUT,
            "The inputs hold a value that JSON cannot express",
        ),
        ({"image": CAT, "config": {"top": 3}}, ErrorCode.INVALID_INPUT, "config.top: "),
    ],
)
def test_wrong_inputs_are_told_by_field(inputs: dict[str, Any], code: ErrorCode, said: str) -> None:
    error = refusal(lambda: parse(find_task(ZERO_SHOT), {"classes": ["cat"]} | inputs))

    assert error.code is code
    assert error.message.startswith(said)


def test_an_image_over_the_limit_is_refused_by_its_field() -> None:
    image = Image.new("1", (20_000, 6000))

    error = refusal(lambda: parse(find_task(ZERO_SHOT), {"image": image, "classes": ["cat"]}))

    assert error.code is ErrorCode.MEDIA_TOO_LARGE
    assert error.message.startswith("image: The image has 20000 × 6000 pixels")


def test_numbers_of_numpy_are_numbers() -> None:
    item = parse(find_task("image-classification"), {"image": CAT, "config": {"top_k": np.int64(3)}})

    assert item.model_dump()["config"]["top_k"] == 3


def test_a_sound_may_be_samples_with_their_rate() -> None:
    import soundfile

    from modelmill_tasks.shared.sources import source_bytes

    samples = np.sin(np.linspace(0, 100, 8000, dtype=np.float32))
    task = find_task("audio-classification")

    item = parse(task, {"audio": (samples, 16_000)})

    found, rate = soundfile.read(io.BytesIO(source_bytes(item.model_dump()["audio"])), dtype="float32")
    assert rate == 16_000
    assert np.array_equal(found, samples)
    error = refusal(lambda: parse(task, {"audio": (samples.reshape(2, 2, -1), 16_000)}))
    assert error.message.startswith("audio: is no sound of the form (samples, sampling rate)")


def test_messages_hold_images_and_several_conversations_are_lists_of_lists() -> None:
    from modelmill_backends.inputs import items

    task = find_task("chat-completion")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "What?"}]}
    ]

    assert len(list(items(task, {"messages": messages}))) == 1
    assert len(list(items(task, {"messages": [messages, messages]}))) == 2
    (part, _) = parse(task, {"messages": messages}).model_dump()["messages"][0]["content"]
    assert pybase64.b64decode(part["image"]) == CAT.read_bytes()


@pytest.mark.usefixtures("in_session_cache")
def test_a_model_is_loaded_by_its_name_or_its_alias_and_closed_with_its_block() -> None:
    with modelmill.load("sentence-transformers/all-MiniLM-L6-v2") as model:
        assert model.name == "minilm"
        assert repr(model) == "<LoadedModel minilm>"
        outputs = model.run("text-embedding", text=["a cat", "a kitten", "stocks fell"])
        vectors = np.array([output.embedding for output in outputs])
        assert model._weights
    assert not model._weights
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > vectors[0] @ vectors[2]


@pytest.mark.usefixtures("in_session_cache")
def test_a_lazy_model_loads_when_it_is_asked() -> None:
    with modelmill.load("minilm", lazy=True) as model:
        assert not model._weights
        model.run("text-embedding", text="x")
        assert model._weights


def test_a_folder_is_a_model_of_all_tasks_of_its_backend(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "My ViT (new)"
    shutil.copytree(tiny("vit"), folder)

    with modelmill.load(str(folder), options={"dtype": "float32"}) as model, modelmill.load(folder) as again:
        assert model.name == "my-vit-new"
        assert {"image-classification", "text-embedding"} <= set(model.tasks)
        assert not model._weights, "nothing is loaded before it is known for which task"
        output = model.run("image-classification", image=CAT, config={"top_k": 2})
        assert output == again.run("image-classification", image=CAT, config={"top_k": 2})
    assert len(output.classes) == 2


def test_a_folder_in_onnx_form_is_known_by_its_file(exported: Callable[[str], Path]) -> None:
    with modelmill.load(exported("clip")) as model:
        assert model.context.entry.backend == "onnx"
        output = model.run(ZERO_SHOT, image=[CAT], classes=["cat", "dog"])[0]
    assert sum(output.probabilities) == pytest.approx(1)


def test_a_gguf_file_is_a_model_too(tmp_path: Path) -> None:
    file = tmp_path / "Tiny.Q4_1.gguf"
    file.write_bytes(b"GGUF")

    model = modelmill.load(str(file))

    assert (model.name, model.context.entry.backend) == ("tiny-q4_1-gguf", "transformers")
    assert {"text-generation", "chat-completion"} <= set(model.tasks)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("mini-lm", {}, "There is no model 'mini-lm'. Did you mean minilm"),
        ("openai/clip-vit-base-patch23", {"catalogue": Catalogue({})}, "is not in the local cache"),
        ("./nowhere", {}, f"There is no folder {Path.cwd()}/nowhere."),
        (Path("minilm"), {}, f"There is no folder {Path.cwd()}/minilm."),
        (ROOT / "docs", {}, f"The folder {ROOT}/docs holds no model: no model_index.json, no safetensors"),
        (
            ROOT / "docs",
            {"backend": "tensorflow"},
            "backend: there is no backend 'tensorflow'; choose one of ",
        ),
        ("minilm", {"backend": "transformers"}, "backend: model minilm has the backend onnx"),
        ("minilm", {"revision": "abc"}, "revision: model minilm does not come from a hub."),
        ("minilm", {"options": {"dtpye": "x"}}, "unknown option 'dtpye'"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told_in_a_sentence(
    name: str | Path, arguments: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    assert said in refusal(lambda: modelmill.load(name, **arguments)).message


def test_models_are_listed_by_task_in_the_catalogues_order() -> None:
    catalogue = Catalogue.load()

    assert modelmill.list_models() == list(catalogue)
    assert modelmill.list_models(limit=2) == list(catalogue)[:2]
    assert modelmill.list_models("image-classification", limit=1) == ["efficientnet-lite0"]
    assert set(modelmill.list_models(ZERO_SHOT)) >= {"conse-lite0", "clip-vit-base-patch32"}
    assert refusal(lambda: modelmill.list_models("image-clasification")).code is ErrorCode.TASK_NOT_FOUND
