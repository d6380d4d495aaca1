"""Reasons why a model does not load, as the person who runs the server reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.catalogue import ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.loader import LoadedModel
from modelmill_backends.source import locate
from tests.support.models import ZERO_SHOT, folder_entry

CUDA = Device("cuda", 1)


def reason(load: Callable[[], object]) -> str:
    with pytest.raises(ModelmillError) as caught:
        load()
    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    return caught.value.message


def test_a_missing_package_names_the_extras(context_of: Callable[..., LoadContext]) -> None:
    entry = ModelEntry(
        name="thing",
        backend="onnx",
        source=Source(package="package_of_mars", path="model"),
        tasks=("text-embedding",),
        requires=("onnx", "offline"),
    )

    assert reason(LoadedModel(context_of(entry)).load) == (
        "Model thing: the Python package package_of_mars is not installed: "
        "pip install 'modelmill[onnx,offline]'"
    )


def test_a_package_without_the_file_says_so() -> None:
    entry = ModelEntry(
        name="thing", backend="onnx", source=Source(package="pytest", path="weights"), tasks=("x",)
    )

    assert reason(lambda: locate(entry)).endswith("the installed package pytest holds no weights")


def test_a_missing_folder_is_told_without_its_path(tmp_path: Path) -> None:
    message = reason(lambda: locate(folder_entry(tmp_path / "gone", "text-embedding")))

    assert "does not exist" in message
    assert str(tmp_path) not in message


def test_no_source_at_all() -> None:
    assert "no source" in reason(lambda: locate(ModelEntry(name="thing", backend="onnx", tasks=("x",))))


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    entry = ModelEntry(
        name="thing", backend="transformers", source=Source(hub="someone/model", revision="abc"), tasks=("x",)
    )

    message = reason(lambda: locate(entry))

    assert "someone/model is not in the local cache" in message
    assert "source.folder" in message


def test_onnx_on_a_gpu_without_its_provider_names_the_extra(
    context_of: Callable[..., LoadContext], open_model: Callable[..., LoadedModel]
) -> None:
    open_model("minilm")

    message = reason(LoadedModel(context_of("minilm", CUDA)).load)

    assert "modelmill[gpu]" in message


def test_transformers_on_a_gpu_that_is_not_there(
    context_of: Callable[..., LoadContext], tiny: Callable[..., Path]
) -> None:
    assert "PyTorch sees none" in reason(
        LoadedModel(context_of(folder_entry(tiny("clip"), ZERO_SHOT), CUDA)).load
    )


def test_a_folder_with_pickles_only_is_refused(
    context_of: Callable[..., LoadContext], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for file in tiny("clip").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")

    assert "never read" in reason(LoadedModel(context_of(folder_entry(tmp_path, ZERO_SHOT))).load)


def test_a_misspelt_option_is_named_with_the_known_ones(
    context_of: Callable[..., LoadContext], tiny: Callable[..., Path]
) -> None:
    entry = folder_entry(tiny("clip"), ZERO_SHOT, options={"dtpye": "float16"})

    message = reason(LoadedModel(context_of(entry)).load)

    assert "unknown option 'dtpye'; its runner knows: dtype, trust_remote_code" in message


def test_half_precision_weights_answer(
    context_of: Callable[..., LoadContext], tiny: Callable[..., Path]
) -> None:
    from tests.fixtures.photos import data_url, photo

    entry = folder_entry(tiny("clip"), ZERO_SHOT, options={"dtype": "bfloat16"})
    item = {"image": data_url(photo("chelsea")), "classes": ["cat", "dog"]}
    model = LoadedModel(context_of(entry)).load()
    (half,) = model.answer(ZERO_SHOT, item)
    model.close()
    (full,) = LoadedModel(context_of(folder_entry(tiny("clip"), ZERO_SHOT))).load().answer(ZERO_SHOT, item)

    assert half.model_dump()["probabilities"] == pytest.approx(full.model_dump()["probabilities"], abs=0.1)
