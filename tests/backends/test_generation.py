"""How tokens are chosen and where texts end, on a tiny Llama and a tiny GPT-2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from modelmill.catalogue import ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.loader import LoadedModel
from modelmill_backends.progress import ProgressSink
from modelmill_backends.transformers.decoding import DecodingSettings
from modelmill_backends.transformers.generation import Request, plan
from modelmill_tasks.text_generation import Input
from tests.fixtures.tiny import generation as tiny

TEXT = "text-generation"
PROMPTS = ("The wheel", "When Anna came back from Berlin she", "A", "Owls in the loft of the mill, and rain")
ENDLESS = {"max_new_tokens": 24, "min_new_tokens": 24}
"""Forces the full number of tokens: with random weights, texts end at random."""


Load = Callable[[Path], LoadedModel]


@pytest.fixture(scope="module")
def load(context_of: Callable[..., LoadContext]) -> Iterator[Load]:
    """Loads a folder, on one core: several cores would wait for each other at each of many small steps."""
    models: list[LoadedModel] = []

    def open_folder(folder: Path) -> LoadedModel:
        source = Source(folder=folder)
        entry = ModelEntry(name="tiny-model", backend="transformers", source=source, tasks=(TEXT,))
        models.append(LoadedModel(context_of(entry, Device("cpu", 1))).load())
        return models[-1]

    yield open_folder
    for model in models:
        model.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llama(folder: Path, load: Load) -> LoadedModel:
    return load(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory, load: Load) -> LoadedModel:
    return load(tiny.tiny_gpt2(tmp_path_factory.mktemp("gpt2")))


def asked(text: str, **config: Any) -> dict[str, Any]:
    return {"text": text, "config": {"chat_template": False, **config}}


def ask(model: LoadedModel, *items: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers to all items in one batch, without ``created``."""
    return [output.model_dump(mode="json", exclude={"created"}) for output in model.answer(TEXT, *items)]


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def reasons(answer: dict[str, Any]) -> list[str]:
    return [choice["finish_reason"] for choice in answer["choices"]]


def drawn(folder: Path, prompt: str, config: dict[str, Any], number: int = 0) -> tuple[str, int]:
    """The text and its number of tokens, from a simple loop over single tokens without a cache."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    stream = torch.Generator().manual_seed(config["seed"] + number)
    ids = tokenizer(prompt)["input_ids"]
    made: list[int] = []
    while len(made) < config["max_new_tokens"] and tokenizer.eos_token_id not in made:
        with torch.no_grad():
            logits = model(torch.tensor([ids + made])).logits[0, -1]
        penalty = config.get("repetition_penalty", 1.0)
        for token in {*ids, *made}:
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        logits = logits / config.get("temperature", 1.0)
        top_k = int(config.get("top_k", 50)) or len(logits)
        logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = float("-inf")
        order = logits.argsort(descending=True)
        before = logits[order].softmax(-1).cumsum(-1) - logits[order].softmax(-1)
        logits[order[before >= config.get("top_p", 1.0)]] = float("-inf")
        made.append(int(torch.multinomial(logits.softmax(-1), 1, generator=stream)))
    return tokenizer.decode(made, skip_special_tokens=True), len(made)


SAMPLING: Sequence[dict[str, Any]] = (
    {"seed": 1, "max_new_tokens": 14},
    {"seed": 2, "max_new_tokens": 9, "temperature": 0.6},
    {"seed": 3, "max_new_tokens": 12, "temperature": 1.7, "top_k": 0},
    {"seed": 4, "max_new_tokens": 16, "top_k": 4.0},
    {"seed": 5, "max_new_tokens": 11, "top_k": 0, "top_p": 0.7},
    {"seed": 6, "max_new_tokens": 13, "temperature": 1.3, "top_k": 20, "top_p": 0.9},
    {"seed": 7, "max_new_tokens": 10, "repetition_penalty": 1.5, "top_k": 30},
)


def test_a_seeded_text_is_that_of_a_plain_loop_in_any_batch(llama: LoadedModel, folder: Path) -> None:
    items = [asked(PROMPTS[index % 4], **config) for index, config in enumerate(SAMPLING)]

    answers = ask(llama, *items)

    for item, answer in zip(items, answers, strict=True):
        text, tokens = drawn(folder, item["text"], item["config"])
        assert (texts(answer), answer["usage"]["completion_tokens"]) == ([text], tokens)


def test_answer_i_of_an_input_is_drawn_with_the_seed_plus_i(llama: LoadedModel, folder: Path) -> None:
    config = {"seed": 11, "max_new_tokens": 8, "num_return_sequences": 3}

    (answer,) = ask(llama, asked("The wheel", **config))

    expected = [drawn(folder, "The wheel", config, number) for number in range(3)]
    assert texts(answer) == [text for text, _ in expected]
    assert answer["usage"]["completion_tokens"] == sum(tokens for _, tokens in expected)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts(answer))) == 3


def test_items_of_all_kinds_get_in_one_batch_what_they_get_alone(llama: LoadedModel) -> None:
    configs: Sequence[dict[str, Any]] = (
        *SAMPLING,
        {"max_new_tokens": 30},
        {"max_new_tokens": 5, "repetition_penalty": 1.3},
        ENDLESS,
        {"max_new_tokens": 7, "num_beams": 3, "num_return_sequences": 3},
        {"max_new_tokens": 7, "num_beams": 3, "length_penalty": -1.0},
        {"max_new_tokens": 20, "stop": ["e"]},
        {"max_new_tokens": 20, "seed": 5, "num_return_sequences": 4, "min_new_tokens": 6},
    )
    items = [asked(PROMPTS[index % 4] * (index % 3 + 1), **config) for index, config in enumerate(configs)]

    together = ask(llama, *items)

    assert together == [ask(llama, item)[0] for item in items]


def test_a_seed_gives_the_same_text_again_and_no_seed_another(llama: LoadedModel) -> None:
    seeded, free = asked("The", **ENDLESS, seed=5), asked("The", **ENDLESS, do_sample=True)

    assert ask(llama, seeded) == ask(llama, seeded)
    assert texts(ask(llama, free)[0]) != texts(ask(llama, free)[0])
    again = ask(llama, free, free)
    assert texts(again[0]) != texts(again[1])


def test_a_temperature_near_zero_is_greedy_and_breaks_nothing(llama: LoadedModel) -> None:
    greedy, cold = ask(llama, asked("The", **ENDLESS), asked("The", **ENDLESS, temperature=1e-300, seed=1))

    assert texts(cold) == texts(greedy)


def test_a_high_temperature_is_nearly_uniform(llama: LoadedModel) -> None:
    config = {"temperature": 100, "top_k": 0, "seed": 0, "max_new_tokens": 60, "min_new_tokens": 60}

    (answer,) = ask(llama, asked("The", **config))

    assert len(set(texts(answer)[0])) > 30


def test_top_k_one_and_a_tiny_top_p_leave_the_likeliest(llama: LoadedModel) -> None:
    greedy, one, narrow = ask(
        llama,
        asked("The", **ENDLESS),
        asked("The", **ENDLESS, seed=1, top_k=1),
        asked("The", **ENDLESS, seed=1, top_k=0, top_p=1e-9),
    )

    assert texts(one) == texts(narrow) == texts(greedy)


def test_a_text_ends_with_the_last_token_that_was_asked_for(llama: LoadedModel) -> None:
    (answer,) = ask(llama, asked("zzz", max_new_tokens=5, min_new_tokens=5))

    assert reasons(answer) == ["length"]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_a_text_that_the_model_ends_says_so_and_not_before_its_least_length(llama: LoadedModel) -> None:
    # Nearly uniform draws reach the token that ends a text at some point.
    config = {"max_new_tokens": 60, "temperature": 100, "top_k": 0}
    answers = ask(llama, *(asked("The", **config, seed=seed) for seed in range(20)))
    counts = [answer["usage"]["completion_tokens"] for answer in answers]
    seed = counts.index(min(counts))

    (longer,) = ask(llama, asked("The", **config, seed=seed, min_new_tokens=counts[seed] + 3))

    assert counts[seed] < 60
    assert reasons(answers[seed]) == ["stop"]
    assert longer["usage"]["completion_tokens"] > counts[seed] + 3
    assert texts(longer)[0].startswith(texts(answers[seed])[0])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_over_several_tokens_ends_the_text_before_it(llama: LoadedModel, length: int) -> None:
    (whole,) = ask(llama, asked("Owls in", **ENDLESS))
    text = texts(whole)[0]
    stop = text[9 : 9 + length]

    (answer,) = ask(llama, asked("Owls in", **ENDLESS, stop=["never there", stop]))

    assert texts(answer) == [text[: text.index(stop)]]
    assert reasons(answer) == ["stop"]
    # Generation stopped after the token that completes the stop string.
    assert answer["usage"]["completion_tokens"] <= 9 + length


def test_a_stop_string_at_the_end_of_the_prompt_does_not_count(llama: LoadedModel) -> None:
    (whole,) = ask(llama, asked("mill zq", **ENDLESS))
    assert "zq" not in texts(whole)[0]

    (answer,) = ask(llama, asked("mill zq", **ENDLESS, stop=["zq"]))

    assert answer == whole


def test_a_special_token_can_be_a_stop_string(llama: LoadedModel) -> None:
    # Uniform draws soon reach each of the hundred tokens.
    config = {"temperature": 100, "top_k": 0, "seed": 3, "max_new_tokens": 400, "min_new_tokens": 400}

    (answer,) = ask(llama, asked("The", **config, stop=["<|im_start|>"]))

    assert reasons(answer) == ["stop"]
    assert answer["usage"]["completion_tokens"] < 400


def test_no_token_is_begun_after_max_time(llama: LoadedModel) -> None:
    config = {"max_new_tokens": 400, "min_new_tokens": 400}

    hurried, beams, other = ask(
        llama,
        asked("The", **config, max_time=1e-6),
        asked("The", **config, max_time=1e-6, num_beams=2),
        asked("The", **ENDLESS),
    )

    assert (reasons(hurried), hurried["usage"]["completion_tokens"]) == (["max_time"], 1)
    assert (reasons(beams), beams["usage"]["completion_tokens"]) == (["max_time"], 1)
    assert (reasons(other), other["usage"]["completion_tokens"]) == (["length"], 24)


def test_a_beam_search_is_that_of_the_library(llama: LoadedModel, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 9, "length_penalty": 0.3}
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Owls in", return_tensors="pt")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    made = model.generate(**inputs, **config)[:, inputs["input_ids"].shape[1] :]

    (answer,) = ask(llama, asked("Owls in", **config))

    assert texts(answer) == tokenizer.batch_decode(made, skip_special_tokens=True)
    ended = [tokenizer.eos_token_id in row for row in made.tolist()]
    assert reasons(answer) == ["stop" if end else "length" for end in ended]


def test_a_stop_string_ends_a_beam_search(llama: LoadedModel) -> None:
    (whole,) = ask(llama, asked("Owls in", **ENDLESS, num_beams=2))
    stops = sorted(set(texts(whole)[0]))[:16]

    (answer,) = ask(llama, asked("Owls in", **ENDLESS, num_beams=2, stop=stops))

    assert reasons(answer) == ["stop"]
    assert not set(stops) & set(texts(answer)[0])
    assert answer["usage"]["completion_tokens"] < 24


def test_several_equal_answers_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(
        ModelmillError, match=r"config\.num_return_sequences: 3 answers need sampling"
    ) as caught:
        ask(llama, asked("The", num_return_sequences=3))

    assert caught.value.code is ErrorCode.INVALID_INPUT


def test_the_prompt_comes_first_where_that_is_asked_for(llama: LoadedModel) -> None:
    plain, full = ask(llama, asked("Owls in", **ENDLESS), asked("Owls in", **ENDLESS, return_full_text=True))

    assert texts(full) == ["Owls in" + texts(plain)[0]]


def test_a_prompt_that_fills_the_window_is_refused_with_both_numbers(llama: LoadedModel) -> None:
    with pytest.raises(ModelmillError, match=r"text: has 1,200 tokens; the model's window is 512") as caught:
        ask(llama, asked("z" * 1200))

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert [problem.field for problem in caught.value.fields] == ["text"]


def test_a_text_ends_at_the_end_of_the_window(gpt2: LoadedModel) -> None:
    (answer,) = ask(gpt2, asked("z" * 41, max_new_tokens=1000, min_new_tokens=7))

    assert reasons(answer) == ["length"]
    assert answer["usage"] == {"prompt_tokens": 41, "completion_tokens": 7, "total_tokens": 48}


def test_a_long_prompt_beside_a_long_answer_stays_within_the_window(gpt2: LoadedModel) -> None:
    items = [asked("z" * 46, max_new_tokens=2), asked("z", max_new_tokens=46, min_new_tokens=46)]

    together = ask(gpt2, *items)

    assert together == [ask(gpt2, item)[0] for item in items]
    assert [answer["usage"]["total_tokens"] for answer in together] == [48, 47]


def test_passes_are_as_few_as_the_window_allows() -> None:
    def request(prompt: int, new: int, **more: Any) -> Request:
        return Request(DecodingSettings(max_new_tokens=new, **more), [0] * prompt)

    requests = [request(10, 20), request(90, 10), request(5, 95), request(80, 20), request(10, 90)]

    assert plan(requests, None) == [[0, 1, 2, 3, 4]]
    # The longest text comes first. 80 + 20 and 90 + 10 tokens fit into the window, 90 + 20 do not.
    assert plan(requests, 100) == [[2], [0, 4], [3], [1]]
    assert plan([request(5, 9, beams=2), request(5, 9), request(6, 9, beams=2)], 100) == [[0, 2], [1]]
    assert plan([request(5, 9, beams=2), request(5, 8, beams=2)], 100) == [[0], [1]]


class Recorder(ProgressSink):
    """Keeps the reports; cancels one item after some tokens."""

    def __init__(self, cancel: int | None = None, after: int = 0) -> None:
        self.told: list[tuple[int, int, int, str]] = []
        self._cancel = cancel
        self._after = after

    def report(self, index: int, done: int, total: int, unit: str) -> None:
        self.told.append((index, done, total, unit))

    def is_canceled(self, index: int) -> bool:
        return index == self._cancel and len([one for one in self.told if one[0] == index]) >= self._after


def run(model: LoadedModel, progress: ProgressSink, *items: dict[str, Any]) -> list[list[Any]]:
    """The rows of each item, from ``forward``."""
    runner = model.runner(TEXT)
    runner.progress = progress
    try:
        prepared = [runner.preprocess(Input.model_validate(item)) for item in items]
        return list(runner.forward(prepared))
    finally:
        runner.progress = ProgressSink()


def test_each_token_is_reported_with_its_item(llama: LoadedModel) -> None:
    recorder = Recorder()

    run(
        llama,
        recorder,
        asked("The", max_new_tokens=3, min_new_tokens=3),
        asked("A", max_new_tokens=5, min_new_tokens=5, seed=1, num_return_sequences=2),
        asked("B", max_new_tokens=2, min_new_tokens=2, num_beams=2),
    )

    assert [one for one in recorder.told if one[0] == 0] == [(0, done, 3, "tokens") for done in (1, 2, 3)]
    assert [one for one in recorder.told if one[0] == 1] == [(1, done, 5, "tokens") for done in range(1, 6)]
    assert [one for one in recorder.told if one[0] == 2] == [(2, done, 2, "tokens") for done in (1, 2)]


@pytest.mark.parametrize("beams", [1, 2])
def test_a_canceled_item_stops_between_two_tokens(llama: LoadedModel, beams: int) -> None:
    recorder = Recorder(cancel=0, after=3)

    run(llama, recorder, asked("The", max_new_tokens=400, min_new_tokens=400, num_beams=beams))

    assert len(recorder.told) <= 4


def test_a_canceled_item_does_not_stop_the_others(llama: LoadedModel) -> None:
    (alone,) = run(llama, ProgressSink(), asked("A", **ENDLESS))

    found = run(
        llama,
        Recorder(cancel=0, after=3),
        asked("The", max_new_tokens=400, min_new_tokens=400),
        asked("A", **ENDLESS),
    )

    assert len(found[0][0].tokens) <= 4
    assert found[1][0].tokens == alone[0].tokens


def test_scores_that_are_no_numbers_fail_their_item_alone(folder: Path, load: Load) -> None:
    import torch

    model = load(folder)
    runner = model.runner(TEXT)
    token = runner.weights.encode("~")[0]
    with torch.no_grad():
        runner.weights.decoder.get_input_embeddings().weight[token] = float("nan")
    items = [asked("bad ~", **ENDLESS, seed=1), asked("good", max_new_tokens=1, seed=1)]
    prepared = [runner.preprocess(Input.model_validate(item)) for item in items]

    bad, good = runner.forward(prepared)

    with pytest.raises(ModelmillError, match="not numbers") as caught:
        runner.postprocess(prepared[0], bad)
    assert caught.value.code is ErrorCode.INFERENCE_FAILED
    assert runner.postprocess(prepared[1], good)


def test_the_models_own_defaults_hold_where_the_caller_says_nothing(
    tmp_path: Path, load: Load, folder: Path
) -> None:
    own = {"do_sample": True, "temperature": 0.5, "top_k": 7, "max_new_tokens": 11, "num_return_sequences": 2}
    model = load(tiny.tiny_llama(tmp_path, generation=own))

    plain, seeded, greedy = ask(
        model,
        asked("The"),
        asked("The", seed=4, num_return_sequences=1),
        asked("The", temperature=0, num_beams=2),
    )

    assert len(plain["choices"]) == 2
    as_one = {"seed": 4, "temperature": 0.5, "top_k": 7, "max_new_tokens": 11}
    assert texts(seeded) == [drawn(folder, "The", as_one)[0]]
    assert len(greedy["choices"]) == 2
    assert ask(model, asked("The", temperature=0, num_beams=2)) == [greedy]
