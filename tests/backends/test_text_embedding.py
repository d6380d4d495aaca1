from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.shared.numerics import normalise
from modelmill_backends.source import locate
from modelmill_tasks.text_embedding import TASK as CONTRACT
from tests.fixtures.tiny.embeddings import shared_encoder
from tests.support.models import OpenModel, folder_entry

TASK = "text-embedding"
TEXTS = [
    "A cat sleeps on the sofa.",
    "x",
    "The quick brown fox jumps over the lazy dog, again and again, until the dog has had enough. " * 3,
    "Ünïcödé, 猫 and 😺",
]
LONG = "word " * 5000


def embed(model: LoadedModel, *texts: str, **config: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    outputs = model.answer(TASK, *({"text": text, "config": config} for text in texts))
    return np.array([output.model_dump()["embedding"] for output in outputs])


def direct(
    folder: Path, texts: list[str], window: int, pooling: str = "mean"
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The expected vectors: one text at a time through ``transformers``, pooled by hand, not normalised."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=window, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0]
        vectors.append({"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling].numpy())
    return np.array(vectors, dtype=np.float64)


def test_minilm_equals_the_direct_path(open_model: OpenModel, context_of: Callable[..., LoadContext]) -> None:
    window = open_model("minilm").runner(TASK).weights.config.window
    wanted = normalise(direct(locate(context_of("minilm").entry), [*TEXTS, LONG], window))

    got = embed(open_model("minilm"), *TEXTS, LONG)

    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_minilm_puts_like_meanings_together(open_model: OpenModel) -> None:
    cat, kitten, bank = embed(
        open_model("minilm"),
        "A cat sleeps on the sofa.",
        "The kitten is napping on the couch.",
        "The central bank raised interest rates by half a percent.",
    )

    assert cat @ kitten > 0.5
    assert cat @ kitten > cat @ bank + 0.4


def test_the_example_of_the_contract_is_what_the_model_says(open_model: OpenModel) -> None:
    (vector,) = embed(open_model("minilm"), CONTRACT.example.input["text"])

    assert len(vector) == 384
    assert vector[:4] == pytest.approx(CONTRACT.example.output["embedding"], abs=1e-4)


def test_normalize_is_the_models_own_way_unless_asked(open_model: OpenModel) -> None:
    model = open_model("minilm")
    own, asked, refused = (
        np.linalg.norm(embed(model, TEXTS[0], **config)[0])
        for config in ({}, {"normalize": True}, {"normalize": False})
    )

    assert own == pytest.approx(1, abs=1e-5)
    assert asked == pytest.approx(1, abs=1e-5)
    assert refused != pytest.approx(1, abs=1e-2)


def test_cost_is_the_share_of_the_window(open_model: OpenModel) -> None:
    runner = open_model("minilm").runner(TASK)
    short, long = (
        runner.preprocess(CONTRACT.input.model_validate({"text": text})) for text in ("a cat", LONG)
    )

    assert short.cost == pytest.approx(4 / 256)
    assert long.cost == 1.0


@pytest.fixture(scope="module")
def add_onnx(open_model: OpenModel, settings: Settings) -> Callable[[Path], None]:
    """Puts the tiny encoder's ONNX form into a folder. It does not include the pooling and later layers."""
    source = shared_encoder()
    open_model(folder_entry(source, TASK, "onnx"))
    (made,) = (settings.cache_dir / "onnx").glob(f"{source.name}-*/model.onnx")

    def add(folder: Path) -> None:
        if not (folder / "model.onnx").exists():
            (folder / "model.onnx").symlink_to(made)

    return add


@pytest.mark.parametrize(
    ("backend", "pooling"),
    [("transformers", "mean"), ("transformers", "cls"), ("transformers", "lasttoken"), ("onnx", "lasttoken")],
)
def test_tiny_encoders_equal_the_direct_path(
    open_model: OpenModel,
    tiny: Callable[..., Path],
    add_onnx: Callable[[Path], None],
    backend: str,
    pooling: str,
) -> None:
    folder = tiny("encoder", pooling=pooling)
    if backend == "onnx":
        add_onnx(folder)

    got = embed(open_model(folder_entry(folder, TASK, backend)), *TEXTS, LONG)

    np.testing.assert_allclose(got, direct(folder, [*TEXTS, LONG], 24, pooling), atol=1e-4)


@pytest.mark.parametrize("backend", ["onnx", "transformers"])
def test_a_batch_gives_each_text_what_it_gets_alone(
    open_model: OpenModel, tiny: Callable[..., Path], add_onnx: Callable[[Path], None], backend: str
) -> None:
    folder = tiny("encoder", pooling="lasttoken")
    if backend == "onnx":
        add_onnx(folder)
    model = open_model(folder_entry(folder, TASK, backend))

    together = embed(model, *TEXTS)

    alone = np.concatenate([embed(model, text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-4)


PROMPTS = {"query": "query: ", "passage": "passage: "}


def test_a_prompt_goes_before_the_text(open_model: OpenModel, tiny: Callable[..., Path]) -> None:
    model = open_model(folder_entry(tiny("encoder", prompts=PROMPTS), TASK))

    with_prompt = embed(model, "cats", prompt_name="query")

    np.testing.assert_allclose(with_prompt, embed(model, "query: cats"), atol=1e-6)


def test_an_unknown_prompt_names_the_known_ones(open_model: OpenModel, tiny: Callable[..., Path]) -> None:
    model = open_model(folder_entry(tiny("encoder", prompts=PROMPTS), TASK))

    with pytest.raises(ModelmillError, match="passage, query") as caught:
        embed(model, "cats", prompt_name="question")

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert caught.value.fields[0].field == "config.prompt_name"


def test_a_module_that_is_not_here_is_named(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    folder = tiny("encoder", pooling="mean")
    for file in folder.glob("*"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "modules.json").unlink()
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.LSTM"}]')
    entry: ModelEntry = folder_entry(tmp_path, TASK, "transformers")

    with pytest.raises(ModelmillError, match="asks for LSTM"):
        LoadedModel(context_of(entry)).load()


def with_dense(folder: Path, copy: Path, activation: str) -> tuple[Path, Any, Any]:
    """The encoder with a layer after its pooling, and the weight and bias of this layer."""
    from safetensors.numpy import save_file

    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "modules.json").unlink()
    kinds = ("Transformer", "1_Pooling"), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")
    modules = [
        {"path": "" if kind == "Transformer" else path, "type": f"sentence_transformers.models.{kind}"}
        for kind, path in kinds
    ]
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "2_Dense").mkdir()
    (copy / "2_Dense" / "config.json").write_text(json.dumps({"activation_function": activation}))
    random = np.random.default_rng(7)
    weight, bias = random.normal(size=(6, 16)).astype("float32"), random.normal(size=6).astype("float32")
    save_file({"linear.weight": weight, "linear.bias": bias}, copy / "2_Dense" / "model.safetensors")
    return copy, weight, bias


@pytest.mark.parametrize("backend", ["transformers", "onnx"])
@pytest.mark.parametrize(
    "activation", ["torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"]
)
def test_a_layer_after_the_pooling_is_applied(
    open_model: OpenModel,
    tiny: Callable[..., Path],
    add_onnx: Callable[[Path], None],
    tmp_path: Path,
    backend: str,
    activation: str,
) -> None:
    folder, weight, bias = with_dense(tiny("encoder", pooling="mean"), tmp_path, activation)
    if backend == "onnx":
        add_onnx(folder)
    layered = direct(folder, TEXTS, 24) @ weight.T + bias
    expected = np.tanh(layered) if activation.endswith("Tanh") else layered

    got = embed(open_model(folder_entry(folder, TASK, backend)), *TEXTS)

    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_layer_whose_weights_are_a_pickle_is_refused(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    folder, _, _ = with_dense(tiny("encoder", pooling="mean"), tmp_path, "torch.nn.modules.linear.Identity")
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")

    with pytest.raises(ModelmillError, match="pickles are never read"):
        LoadedModel(context_of(folder_entry(folder, TASK))).load()
