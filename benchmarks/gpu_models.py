"""The cases of the GPU section, and the speed of their models alone.

They are real architectures at their published sizes, with random weights: how long a forward pass takes
depends on the sizes and not on the weights, so nothing has to be downloaded.
The answers of these models mean nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.photo import inputs
from modelmill.catalogue import Catalogue
from modelmill.settings import get_settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device, free_memory
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.registry import find_task

PRINTABLE = [chr(code) for code in range(33, 127)]
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Case:
    """One model that is measured."""

    name: str
    build: Callable[[Path, str], None]
    """Saves the model into a folder; the second argument is torch's name of the device."""
    dtype: str
    task: str
    inputs: Callable[[], Mapping[str, Any]]
    """One job's input."""
    unit: str
    """The unit that is counted, such as ``images``; one for each job."""
    on_device: Callable[[Any, int], Callable[[], object]]
    """From the loaded runner and a batch size: a forward pass on inputs that are on the device already."""

    @property
    def model(self) -> str:
        """Its name in the catalogue."""
        return self.name.lower().replace("/", "-").replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Forward:
    """The speed of the runner alone."""

    rates: Mapping[int, tuple[float, float]]
    """Items a second by batch size: from prepared inputs in this process, and from inputs on the device."""
    preprocess_s: float
    """One item, in one thread."""

    @property
    def best_batch(self) -> int:
        return max(self.rates, key=lambda batch: self.rates[batch][0])

    @property
    def best(self) -> float:
        return self.rates[self.best_batch][0]


@dataclass(frozen=True, slots=True)
class ClipSizes:
    """A CLIP's sizes, under the names that ``CLIPConfig`` has for them."""

    vision: Mapping[str, int]
    text: Mapping[str, int]
    projection: int


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    """A transformer's sizes; CLIP's inner layers are four times as wide in every variant."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


VOCABULARY, WINDOW = 49_408, 77

VIT_B_32 = ClipSizes(
    vision={**_tower(768, 12, 12), "image_size": 224, "patch_size": 32},
    text={**_tower(512, 12, 8), "vocab_size": VOCABULARY, "max_position_embeddings": WINDOW},
    projection=512,
)
"""As published in openai/clip-vit-base-patch32."""

VIT_L_14 = ClipSizes(
    vision={**_tower(1024, 24, 16), "image_size": 224, "patch_size": 14},
    text={**_tower(768, 12, 12), "vocab_size": VOCABULARY, "max_position_embeddings": WINDOW},
    projection=768,
)
"""As published in openai/clip-vit-large-patch14."""

TINY = ClipSizes(
    vision={**_tower(16, 2, 2), "image_size": 32, "patch_size": 8},
    text={**_tower(16, 2, 2), "vocab_size": 256, "max_position_embeddings": WINDOW},
    projection=16,
)
"""No published variant: it shows that the code runs, and measures nothing."""


def save_random_clip(sizes: ClipSizes, folder: Path, device: str) -> None:
    """Saves a CLIP with its tokenizer and image processor, as a models file's ``folder`` wants them.

    Args:
        sizes: The sizes of the variant.
        folder: Where it is saved.
        device: Where the random weights are made: hundreds of millions of them take a CPU long.
    """
    import torch
    import transformers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()

    # One token a character. The ids are the model's first ones, and its table of embeddings keeps its size.
    words = [*PRINTABLE, *(character + "</w>" for character in PRINTABLE), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    ends = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
    torch.manual_seed(0)
    config: Any = CLIPConfig(
        text_config={**sizes.text, **ends},
        vision_config=dict(sizes.vision),
        projection_dim=sizes.projection,
    )
    with torch.device(device):
        model: Any = CLIPModel(config)
    edge = sizes.vision["image_size"]
    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
    tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=[])
    # Half the bytes on the disk. The load chooses the type in which the model runs.
    for part in (model.to(torch.bfloat16), tokenizer, processor):
        part.save_pretrained(folder)


LLAMA_1B: Mapping[str, int] = {
    **_tower(2048, 22, 32),
    "intermediate_size": 5632,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
}
"""As published in TinyLlama/TinyLlama-1.1B-Chat-v1.0."""

TINY_LLAMA: Mapping[str, int] = {
    **_tower(16, 2, 2),
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 256,
}

ANSWER_TOKENS = 64


def save_random_llama(sizes: Mapping[str, int], folder: Path, device: str) -> None:
    """Saves a Llama with a tokenizer of one token a character; arguments as for the CLIP."""
    import torch
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    library: Any = transformers
    words = [START, END, "<unk>", " ", *PRINTABLE]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, unk_token="<unk>", pad_token=END
    )
    torch.manual_seed(0)
    config = library.LlamaConfig(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with torch.device(device):
        model = library.LlamaForCausalLM(config)
    for part in (model.to(torch.bfloat16), fast):
        part.save_pretrained(folder)


def llama(name: str, sizes: Mapping[str, int], dtype: str) -> Case:
    """Answers of 64 tokens to prompts of about 100."""
    build = partial(save_random_llama, sizes)
    return Case(f"{name} {dtype}", build, dtype, "text-generation", _prompt, "answers", _llama_on_device)


def _prompt() -> Mapping[str, Any]:
    words = "What the miller said when the wheel stood still, and nobody knew what was to become of the mill."
    exactly = {"min_new_tokens": ANSWER_TOKENS, "max_new_tokens": ANSWER_TOKENS, "do_sample": False}
    return {"text": words, "config": exactly}


def _llama_on_device(runner: Any, batch: int) -> Callable[[], object]:
    import torch

    model = runner.weights.loaded.model
    size = len(_prompt()["text"])
    ids = torch.randint(4, 90, (batch, size), device=runner.device.torch_name)

    def run() -> None:
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=ANSWER_TOKENS,
                max_new_tokens=ANSWER_TOKENS,
            )

    return run


def forward_only(case: Case, folder: Path, device: Device, batches: Sequence[int], pass_s: float) -> Forward:
    """The runner's forward passes in this process, and nothing else.

    Args:
        case: The model that runs.
        folder: Where it is saved.
        device: Where it runs.
        batches: The sizes to try, rising; those that do not fit the memory are left out.
        pass_s: How long each size is repeated.
    """
    catalogue = Catalogue.load(write_models_file(case, folder, max(batches)))
    model = LoadedModel(LoadContext(catalogue.find(case.model), device, catalogue, get_settings())).load()
    try:
        runner = model.runner(case.task)
        item = find_task(case.task).input.model_validate(case.inputs())
        started = time.perf_counter()
        # Each its own, as in a worker: one that is repeated would stay in the processor's cache.
        prepared = [runner.preprocess(item) for _ in range(max(batches))]
        preprocess_s = (time.perf_counter() - started) / len(prepared)
        rates: dict[int, tuple[float, float]] = {}
        for batch in batches:
            try:
                host_s = _pass_s(partial(runner.forward, prepared[:batch]), pass_s)
                device_s = _pass_s(case.on_device(runner, batch), pass_s)
            except Exception as error:
                if not rates or type(error).__name__ != "OutOfMemoryError":
                    raise
                break
            rates[batch] = (batch / host_s, batch / device_s)
    finally:
        model.close()
        del model
        # The worker of the next step needs the room on the same GPU.
        free_memory()
    return Forward(rates, preprocess_s)


def _pass_s(run: Callable[[], object], seconds: float) -> float:
    """Median of the passes of about ``seconds``, at least three, after two that warm up."""
    for _ in range(2):
        run()
    took: list[float] = []
    while len(took) < 3 or sum(took) < seconds:
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def write_models_file(case: Case, folder: Path, max_batch: int) -> Path:
    """A catalogue of this one model, next to the folder in which it was saved."""
    path = folder / "models.toml"
    path.write_text(
        f'[models.{case.model}]\nbackend = "transformers"\nsource = {{ folder = "weights" }}\n'
        f'tasks = ["{case.task}"]\nmax_batch = {max_batch}\noptions = {{ dtype = "{case.dtype}" }}\n'
    )
    return path


def clip(name: str, sizes: ClipSizes, dtype: str) -> Case:
    """Zero-shot classification of photos of 60 KB."""
    build = partial(save_random_clip, sizes)
    task = "zero-shot-image-classification"
    return Case(f"{name} {dtype}", build, dtype, task, inputs, "images", _clip_on_device)


def _clip_on_device(runner: Any, batch: int) -> Callable[[], object]:
    import torch

    model, device = runner.weights.model, runner.device.torch_name
    edge = model.config.vision_config.image_size
    pixels = torch.randn(batch, 3, edge, edge, device=device).to(model.dtype)

    def run() -> None:
        with torch.inference_mode():
            model.get_image_features(pixel_values=pixels)
        if runner.device.kind == "cuda":
            torch.cuda.synchronize()

    return run


CASES = (
    clip("CLIP ViT-B/32", VIT_B_32, "bfloat16"),
    clip("CLIP ViT-B/32", VIT_B_32, "float16"),
    clip("CLIP ViT-L/14", VIT_L_14, "bfloat16"),
    clip("CLIP ViT-L/14", VIT_L_14, "float16"),
    llama("Llama 1.1B", LLAMA_1B, "bfloat16"),
)
"""One entry each; text-to-image will be one more."""

TINY_CASES = (clip("tiny CLIP", TINY, "float32"), llama("tiny Llama", TINY_LLAMA, "float32"))
