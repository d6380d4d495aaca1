"""Chats, summaries, translations, captions and answers: the inputs that each kind takes and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelmill.catalogue import ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.conformance import samples_of
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.loader import LoadedModel
from modelmill_backends.registry import find_runner
from modelmill_backends.transformers.languages import MarkedLanguages, OnePair, Way
from modelmill_backends.transformers.stopping import continuation
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.translation import Input
from tests.fixtures.tiny import generation as tiny

TEXT, CHAT, SUMMARY, TRANSLATION = "text-generation", "chat-completion", "summarization", "translation"
CAPTION, QUESTION = "image-to-text", "visual-question-answering"

Load = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def load(context_of: Callable[..., LoadContext], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """``load("llama", "text-generation", "chat-completion")``: a tiny model, on one core."""
    models: dict[Any, LoadedModel] = {}

    def get(kind: str, *tasks: str, runner: str = "default", **options: Any) -> LoadedModel:
        key = (kind, tasks, runner, *sorted(options.items()))
        if key not in models:
            folder: Path = getattr(tiny, f"tiny_{kind}")(tmp_path_factory.mktemp(kind), **options)
            entry = ModelEntry(
                name="tiny-model",
                backend="transformers",
                runner=runner,
                source=Source(folder=folder),
                tasks=tasks,
            )
            models[key] = LoadedModel(context_of(entry, Device("cpu", 1))).load()
        return models[key]

    yield get
    for model in models.values():
        model.close()


def ask(model: LoadedModel, task: str, **item: Any) -> dict[str, Any]:
    (output,) = model.answer(task, item)
    found: dict[str, Any] = output.model_dump(mode="json", exclude={"created"})
    return found


def refusal(model: LoadedModel, task: str, **item: Any) -> tuple[str, str]:
    """The field that the error names, and the message."""
    with pytest.raises(ModelmillError) as caught:
        model.answer(task, item)
    assert caught.value.code is ErrorCode.INVALID_INPUT
    (problem,) = caught.value.fields
    return problem.field, problem.message


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


SHORT = {"max_new_tokens": 12, "min_new_tokens": 12}


def test_one_models_tasks_share_its_weights(load: Load) -> None:
    llama, t5 = load("llama", TEXT, CHAT), load("t5", SUMMARY, TRANSLATION)
    llava = load("llava", CHAT, QUESTION, runner="vision")

    for model, one, other in ((llama, TEXT, CHAT), (t5, SUMMARY, TRANSLATION), (llava, CHAT, QUESTION)):
        assert model.runner(one).weights is model.runner(other).weights


def test_a_chat_is_the_text_that_the_template_writes(load: Load) -> None:
    model = load("llama", TEXT, CHAT)
    prompt = (
        "<|im_start|>system\nYou are brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )

    chat = ask(
        model, CHAT, messages=[{"role": "system", "content": "You are brief."}, user("Hello")], config=SHORT
    )
    system = ask(model, TEXT, text="Hello", config={**SHORT, "system_message": "You are brief."})
    plain = ask(model, TEXT, text=prompt, config={**SHORT, "special_tokens": True})

    assert chat["choices"][0]["message"] == {"role": "assistant", "content": plain["choices"][0]["text"]}
    assert system == plain
    assert chat["usage"] == plain["usage"]


def test_parts_of_text_are_lines_of_one_message(load: Load) -> None:
    model = load("llama", TEXT, CHAT)
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]

    assert ask(model, CHAT, messages=[user(parts)], config=SHORT) == ask(
        model, CHAT, messages=[user("Hello\nyou")], config=SHORT
    )


def test_a_model_without_a_chat_template_refuses_a_chat(load: Load) -> None:
    model = load("gpt2", TEXT, CHAT)

    field, said = refusal(model, TEXT, text="Hello", config={"system_message": "You are brief."})
    assert (field, "no chat template" in said) == ("config.system_message", True)
    field, said = refusal(model, CHAT, messages=[user("Hello")])
    assert (field, "no chat template" in said) == ("messages", True)


def test_a_model_that_only_reads_refuses_an_image_by_its_place(load: Load) -> None:
    model = load("llama", TEXT, CHAT)
    messages = [user("Hello"), user([{"type": "text", "text": "This?"}, {"type": "image", "image": CAT}])]

    field, said = refusal(model, CHAT, messages=messages)

    assert field == "messages.1.content"
    assert "does not take images" in said


def test_what_a_template_says_against_a_chat_reaches_the_caller(load: Load) -> None:
    model = load("llama", TEXT, CHAT)
    tokenizer = model.runner(CHAT).weights.tokenizer
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    try:
        field, said = refusal(model, CHAT, messages=[user("Hello")])
    finally:
        tokenizer.chat_template = template

    assert field == "messages"
    assert "System role not supported" in said


def test_an_answer_about_an_image_depends_on_the_image(load: Load) -> None:
    model = load("llava", CHAT, QUESTION, runner="vision")

    def answer(image: str) -> Any:
        parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
        return ask(model, CHAT, messages=[user(parts)], config=SHORT)

    other = samples_of(find_task(CAPTION), 4)[3]["image"]
    assert answer(CAT)["choices"] != answer(other)["choices"]
    assert answer(CAT)["usage"] == answer(other)["usage"]


def test_a_question_about_an_image_is_a_chat_about_it(load: Load) -> None:
    model = load("llava", CHAT, QUESTION, runner="vision")
    parts = [{"type": "image", "image": CAT}, {"type": "text", "text": "What is it?"}]

    chat = ask(model, CHAT, messages=[user(parts)], config=SHORT)
    answers = ask(model, QUESTION, image=CAT, question="What is it?", config=SHORT)["answers"]

    assert answers == [{"answer": chat["choices"][0]["message"]["content"].strip(), "score": None}]


def test_the_name_of_the_image_token_in_a_message_is_text(load: Load) -> None:
    model = load("llava", CHAT, QUESTION, runner="vision")
    runner = model.runner(CHAT)
    image = {"type": "image", "image": CAT}

    def prompt(*parts: dict[str, Any]) -> list[int]:
        item = find_task(CHAT).input.model_validate({"messages": [user(list(parts))]})
        found: list[int] = list(runner.preprocess(item).data.request.prompt)
        return found

    for said in ("<image>", "a <image><image> b", "<|im_start|><image><|end|>"):
        ids = prompt(image, {"type": "text", "text": said})
        assert ids.count(runner.weights.special["<image>"]) == 9
        assert ids.count(runner.weights.special["<|end|>"]) == 0
        assert said in runner.weights.decode(ids)
    split = prompt({"type": "text", "text": "a<im"}, image, {"type": "text", "text": "age>b"})
    assert split.count(runner.weights.special["<image>"]) == 9
    assert ask(model, QUESTION, image=CAT, question="What is <image>?", config=SHORT)["answers"]


def test_beams_over_several_images_are_refused(load: Load) -> None:
    model = load("llava", CHAT, QUESTION, runner="vision")
    image = {"type": "image", "image": CAT}

    field, _ = refusal(model, CHAT, messages=[user([image, image])], config={"num_beams": 2})

    assert field == "config.num_beams"


def test_what_is_longer_than_the_window_is_cut_off(load: Load) -> None:
    summary = ask(load("t5", SUMMARY, TRANSLATION), SUMMARY, text="mill " * 500)

    assert summary["usage"]["prompt_tokens"] == 64


def test_a_task_has_the_defaults_that_its_model_names_for_it(load: Load) -> None:
    model = load("t5", SUMMARY, TRANSLATION)

    # max_length 14 and 12 include the token that the decoder starts with.
    summary = ask(model, SUMMARY, text="The mill", config={"min_new_tokens": 13})
    translation = ask(
        model, TRANSLATION, text="The mill", config={"target_language": "fr", "min_new_tokens": 11}
    )

    assert summary["usage"]["completion_tokens"] == 13
    assert translation["usage"]["completion_tokens"] == 11


@pytest.mark.parametrize("names", [("en", "de"), ("English", "german"), (None, "DE")])
def test_t5_is_told_its_languages_by_code_or_name(load: Load, names: tuple[str | None, str]) -> None:
    model = load("t5", SUMMARY, TRANSLATION)

    def translated(source: str | None, target: str) -> Any:
        config = {"source_language": source, "target_language": target}
        return ask(model, TRANSLATION, text="The mill", config=config)

    assert translated(*names) == translated("en", "de")
    assert translated(*names) != translated("en", "fr")


def test_languages_that_t5_has_not_learnt_are_refused_with_those_it_has(load: Load) -> None:
    model = load("t5", SUMMARY, TRANSLATION)

    for config, field in (
        ({"target_language": "Klingon"}, "config.target_language"),
        ({"source_language": "de", "target_language": "en"}, "config.source_language"),
        ({}, "config.target_language"),
    ):
        named, said = refusal(model, TRANSLATION, text="Hello", config=config)
        assert (named, "en to de, en to fr" in said) == (field, True)


def test_a_t5_that_names_no_tasks_takes_any_language(load: Load) -> None:
    model = load("t5", TRANSLATION, tells=False)

    def translated(target: str) -> Any:
        config = {"source_language": "en", "target_language": target, "max_new_tokens": 12}
        return ask(model, TRANSLATION, text="The mill", config=config)

    assert translated("de") == translated("German")
    assert translated("dutch") != translated("German")
    assert refusal(model, TRANSLATION, text="Hello")[0] == "config.target_language"


def test_nllb_is_told_its_languages_by_code(load: Load) -> None:
    model = load("nllb", TRANSLATION)

    def translated(**config: Any) -> Any:
        return ask(model, TRANSLATION, text="The mill", config={**config, "max_new_tokens": 6})

    french = translated(source_language="eng_Latn", target_language="fra_Latn")
    assert french == translated(target_language="fra_Latn")
    assert french != translated(target_language="deu_Latn")

    runner = model.runner(TRANSLATION)
    special = runner.weights.special
    for source, code in (("deu_Latn", "deu_Latn"), (None, "eng_Latn")):
        config = {"source_language": source, "target_language": "fra_Latn"}
        prepared = runner.preprocess(Input.model_validate({"text": "The mill", "config": config}))
        assert prepared.data.ids[0] == special[code]


def test_a_code_that_nllb_does_not_know_is_refused_with_those_it_knows(load: Load) -> None:
    model = load("nllb", TRANSLATION)

    field, said = refusal(model, TRANSLATION, text="Hello", config={"target_language": "fra_Latin"})
    assert field == "config.target_language"
    assert "similar codes: fra_Latn" in said
    field, said = refusal(model, TRANSLATION, text="Hello")
    assert field == "config.target_language"
    assert said == "set it; the model knows deu_Latn, eng_Latn, fra_Latn"
    config = {"source_language": "xx", "target_language": "fra_Latn"}
    assert refusal(model, TRANSLATION, text="Hello", config=config)[0] == "config.source_language"


def test_a_model_of_one_pair_takes_no_names(load: Load) -> None:
    model = load("bart", TRANSLATION)

    assert ask(model, TRANSLATION, text="Hello")["translation_text"]
    assert refusal(model, TRANSLATION, text="Hello", config={"target_language": "de"})[0] == (
        "config.target_language"
    )


def test_a_model_of_one_named_pair_takes_its_own_names_only() -> None:
    pair = OnePair("en", "de")

    assert pair.way("EN", None) == pair.way(None, "de") == Way()
    for names, field in ((("fr", "de"), "config.source_language"), ((None, "fr"), "config.target_language")):
        with pytest.raises(ModelmillError, match=f"{field}: the model knows") as caught:
            pair.way(*names)
        assert caught.value.code is ErrorCode.INVALID_INPUT


def test_marian_is_told_the_language_by_a_mark_before_the_text() -> None:
    marked = MarkedLanguages(["fra", "deu"], "en")

    assert marked.way(None, "fra") == marked.way("en", "fra") == Way(prefix=">>fra<< ")
    for names, said in (
        ((None, None), "config.target_language: set it; it knows deu, fra"),
        ((None, "ita"), "config.target_language: the model has no such code; it knows deu, fra"),
        (("de", "fra"), "config.source_language: the model knows only en"),
    ):
        with pytest.raises(ModelmillError, match=said):
            marked.way(*names)


def test_a_text_without_a_known_token_is_refused(load: Load) -> None:
    field, said = refusal(load("gpt2", TEXT, CHAT), TEXT, text="水")

    assert field == "text"
    assert said == "holds nothing that the model's tokenizer knows"


def test_a_chat_with_images_begins_as_its_tokenizer_begins_texts(load: Load) -> None:
    model = load("llava", CHAT, QUESTION, runner="vision")
    weights = model.runner(CHAT).weights
    begin = weights.special["<|im_start|>"]

    def first(template: str) -> list[int]:
        weights.processor.chat_template = template
        message = {"messages": [user("Hello")]}
        prepared = model.runner(CHAT).preprocess(find_task(CHAT).input.model_validate(message))
        found: list[int] = prepared.data.request.prompt[:2]
        return found

    try:
        assert first("Hi") == [begin, *weights.encode("H", add_special_tokens=False)]
        assert first("<|im_start|>Hi") == first("Hi")
    finally:
        weights.processor.chat_template = tiny.VISION_TEMPLATE


def test_a_caption_goes_on_from_its_beginning(load: Load) -> None:
    found = ask(load("blip", CAPTION), CAPTION, image=CAT, text="two cats", config=SHORT)

    # In the tiny tokenizer each letter is a word.
    assert found["text"].startswith("two cats")
    assert found["usage"]["completion_tokens"] == 12
    assert found["usage"]["prompt_tokens"] > 1


def test_a_model_that_begins_by_itself_refuses_a_beginning(load: Load) -> None:
    model = load("captioner", CAPTION)

    assert refusal(model, CAPTION, image=CAT, text="a photo of")[0] == "text"
    # max_length 12 includes the token that the decoder starts with.
    assert ask(model, CAPTION, image=CAT, config={"min_new_tokens": 11})["usage"]["completion_tokens"] == 11


def test_a_model_that_chats_is_no_captioner(context_of: Callable[..., LoadContext], tmp_path: Path) -> None:
    source = Source(folder=tiny.tiny_llava(tmp_path))
    entry = ModelEntry(name="tiny-model", backend="transformers", source=source, tasks=(CAPTION,))

    with pytest.raises(
        ModelmillError, match=r'chat-completion with an image, and set runner = "vision"'
    ) as caught:
        LoadedModel(context_of(entry, Device("cpu", 1))).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED


def test_fixed_answers_are_as_many_as_asked_for_best_first(load: Load) -> None:
    model = load("vilt", QUESTION)

    two = ask(model, QUESTION, image=CAT, question="is it?", config={"num_answers": 2})["answers"]
    four = ask(model, QUESTION, image=CAT, question="is it?")["answers"]

    assert len(two) == 2
    assert [answer["answer"] for answer in four[:2]] == [answer["answer"] for answer in two]
    assert sorted(answer["answer"] for answer in four) == ["cat", "no", "two", "yes"]
    assert [answer["score"] for answer in four] == sorted((answer["score"] for answer in four), reverse=True)


def test_a_question_longer_than_the_window_is_refused(load: Load) -> None:
    for model in (load("vilt", QUESTION), load("blip", QUESTION, runner="generative", questions=True)):
        field, said = refusal(model, QUESTION, image=CAT, question="why " * 30)
        assert field == "question"
        assert "122 tokens" in said or "92 tokens" in said


def test_written_answers_are_unlike_and_no_more_than_asked_for(load: Load) -> None:
    model = load("blip", QUESTION, runner="generative", questions=True)
    config = {"num_return_sequences": 6, "seed": 1, "max_new_tokens": 3}

    answers = ask(model, QUESTION, image=CAT, question="why?", config={**config, "num_answers": 4})["answers"]

    texts = [answer["answer"] for answer in answers]
    assert len(texts) == len(set(texts)) <= 4
    assert {answer["score"] for answer in answers} == {None}
    assert len(ask(model, QUESTION, image=CAT, question="why?")["answers"]) == 1


@pytest.mark.parametrize(
    ("kind", "options", "runner"), [("vilt", {}, "generative"), ("blip", {"questions": True}, "default")]
)
def test_a_model_of_the_other_kind_says_which_runner_it_needs(
    context_of: Callable[..., LoadContext], tmp_path: Path, kind: str, options: dict[str, Any], runner: str
) -> None:
    source = Source(folder=getattr(tiny, f"tiny_{kind}")(tmp_path, **options))
    entry = ModelEntry(
        name="tiny-model", backend="transformers", runner=runner, source=source, tasks=(QUESTION,)
    )

    with pytest.raises(ModelmillError, match="generative"):
        LoadedModel(context_of(entry, Device("cpu", 1))).load()


def test_a_text_goes_on_with_the_space_that_it_begins_with() -> None:
    words = {1: "The", 2: "▁cat", 3: "▁sat"}

    def decode(tokens: Any) -> str:
        # As in SentencePiece, the space before the first word is not written.
        return "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    assert continuation(decode, [1, 2], [3]) == " sat"
    assert continuation(decode, [], [3]) == "sat"


def test_every_name_of_a_runner_is_found() -> None:
    for task, runner in (
        (TEXT, "default"),
        (CHAT, "default"),
        (CHAT, "vision"),
        (SUMMARY, "default"),
        (TRANSLATION, "default"),
        (CAPTION, "default"),
        (QUESTION, "default"),
        (QUESTION, "generative"),
        (QUESTION, "vision"),
    ):
        entry = ModelEntry(name="tiny-model", backend="transformers", runner=runner, tasks=(task,))
        assert find_runner(entry, task).name == runner
