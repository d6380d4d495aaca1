"""Loading pipelines of ``diffusers``: which files are read, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils._paths import filter_repo_objects
from numpy.typing import NDArray

from modelmill.catalogue import Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.diffusers import pipelines
from modelmill_backends.loader import LoadedModel
from modelmill_backends.source import SETTINGS_FILES
from tests.fixtures.tiny.text_to_image import tiny_sd
from tests.support.images import draw, entry, pixels

ContextOf = Callable[..., LoadContext]
ONE_THREAD = Device("cpu", 1)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("tiny-sd"))


def load_error(context_of: ContextOf, folder: Path, **fields: Any) -> str:
    with pytest.raises(ModelmillError) as caught:
        LoadedModel(context_of(entry(folder, **fields), ONE_THREAD)).load()
    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert str(folder) not in caught.value.message
    return caught.value.message


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def change_index(folder: Path, **values: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | values))


def test_code_that_comes_with_a_pipeline_is_never_run(context_of: ContextOf, copy: Path) -> None:
    for file in (copy / "evil.py", copy / "unet" / "evil.py"):
        file.write_text("raise SystemExit('it was run')\nclass Evil: pass\n")

    change_index(copy, _class_name=["evil", "Evil"])
    assert "Python code, which is never run" in load_error(context_of, copy)
    change_index(copy, _class_name="StableDiffusionPipeline", unet=["evil", "Evil"])
    assert "its part 'unet' comes from 'evil'" in load_error(context_of, copy)
    change_index(copy, unet=["os", "system"])
    assert "its part 'unet' comes from 'os'" in load_error(context_of, copy)


def test_pickles_are_never_read(context_of: ContextOf, copy: Path) -> None:
    import torch

    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")

    assert "no safetensors weights, and pickles (.bin) are never read" in load_error(context_of, copy)


def test_what_is_no_pipeline_for_images_is_refused(context_of: ContextOf, copy: Path, tmp_path: Path) -> None:
    assert "model_index.json is missing" in load_error(context_of, tmp_path)
    (copy / "model_index.json").write_text("[]")
    assert "never run" in load_error(context_of, copy)
    (copy / "model_index.json").write_text('{"_class_name": "AudioLDMPipeline"}')
    assert "AudioLDMPipeline" in load_error(context_of, copy)


def test_an_unknown_option_is_named(context_of: ContextOf, copy: Path) -> None:
    assert "unknown option 'steps'" in load_error(context_of, copy, options={"steps": 3})


def test_of_a_repository_only_the_files_of_one_variant_are_fetched() -> None:
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.19.0",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "image_encoder": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    full = [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    half = [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    settings = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"]
    others = [
        "sd_xl_base_1.0.safetensors",
        "text_encoder/model.onnx",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae_1_0/diffusion_pytorch_model.safetensors",
        "pipeline.py",
    ]

    def fetched(variant: str | None) -> list[str]:
        patterns = [*SETTINGS_FILES, *pipelines._weight_files(index, variant)]
        return sorted(filter_repo_objects([*full, *half, *settings, *others], allow_patterns=patterns))

    assert fetched(None) == sorted([*settings, *full])
    assert fetched("fp16") == sorted([*settings, *half])


def test_a_pipeline_loads_from_the_local_cache_of_the_hub(
    context_of: ContextOf, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants
    import torch
    from diffusers import StableDiffusionPipeline

    commit = "0" * 40
    snapshot = tmp_path / "models--someone--paints" / "snapshots" / commit
    make: Any = StableDiffusionPipeline
    # Weights that differ from the full ones, so that the test can tell which are read.
    half = make.from_pretrained(tiny_folder, use_safetensors=True)
    with torch.no_grad():
        half.vae.decoder.conv_out.bias.add_(0.5)
    half.save_pretrained(snapshot)
    half.save_pretrained(snapshot, variant="fp16")
    shutil.copy(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors", snapshot / "vae")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def image(variant: str | None) -> NDArray[np.int16]:
        source = Source(hub="someone/paints", revision=commit)
        options = {"variant": variant} if variant else {}
        found = entry(tmp_path, options=options).model_copy(update={"source": source})
        model = LoadedModel(context_of(found, ONE_THREAD)).load()
        ((drawn,),) = draw(model, "a mill", seed=1)
        model.close()
        return pixels(drawn)

    assert image("fp16").mean() > image(None).mean() + 10
