"""The figures in warnings about texts and answers, and how a model in this process raises them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modelmill
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.transformers.text_generation import HINT
from modelmill_cli.run import run_task
from modelmill_tasks.item_warnings import InputWarning, WarningCode
from tests.fixtures.tiny import generation
from tests.support.models import OpenModel, folder_entry

CUT, UNKNOWN, EMPTY = WarningCode.TEXT_CUT, WarningCode.TEXT_UNKNOWN, WarningCode.OUTPUT_EMPTY
LONG = "a " * 1_410
"""A word is a token of the tiny tokenizers; with the two special ones they are 1,412."""

Open = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def texts(open_model: OpenModel, tiny_text: Callable[..., Path]) -> Open:
    """``texts("nli", "zero-shot-classification")``: a tiny model that reads texts."""
    return lambda kind, task, **options: open_model(folder_entry(tiny_text(kind, **options), task))


@pytest.fixture(scope="module")
def writes(open_model: OpenModel, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """``writes("t5", "summarization")``: a tiny model that writes texts."""
    kept: dict[str, Path] = {}

    def get(kind: str, task: str, **options: Any) -> LoadedModel:
        if kind not in kept:
            kept[kind] = getattr(generation, f"tiny_{kind}")(tmp_path_factory.mktemp(kind))
        return open_model(folder_entry(kept[kind], task, **options))

    return get


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory, context_of: Callable[..., LoadContext]) -> Any:
    import torch

    folder = generation.tiny_llama(tmp_path_factory.mktemp("mute"))
    with LoadedModel(context_of(folder_entry(folder, "text-generation"))).load() as model:
        weights = model.runner("text-generation").weights
        head = weights.loaded.model.lm_head.weight
        head.zero_()
        bias = torch.zeros(head.shape[0])
        bias[weights.eos[0]] = 9.0
        weights.loaded.model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
        yield model


def warned(model: LoadedModel, task: str, **item: Any) -> list[tuple[WarningCode, str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.answer(task, item)
    return [
        (one.message.code, one.message.message) for one in caught if isinstance(one.message, InputWarning)
    ]


def test_a_text_is_cut_to_the_window_with_its_figures(texts: Open) -> None:
    task = "text-classification"
    model = texts("classifier", task)

    assert warned(model, task, text=LONG) == [(CUT, "The text was cut to 64 tokens; it has 1,412.")]
    assert warned(model, task, text="a " * 62) == []
    assert warned(model, task, text="a " * 63) == [(CUT, "The text was cut to 64 tokens; it has 65.")]


def test_a_text_beside_a_class_is_cut_to_what_the_class_leaves(texts: Open) -> None:
    task = "zero-shot-classification"
    model = texts("nli", task)

    (found,) = warned(model, task, text="ab" * 200, classes=["x", "longer"])

    # The window of 64 holds 4 end tokens and the 23 letters of "This example is longer.".
    assert found == (CUT, "The text was cut to 38 tokens; it has 400.")
    assert warned(model, task, text="ab" * 10, classes=["x", "longer"]) == []


def test_the_text_around_a_gap_is_cut_with_its_figures(texts: Open) -> None:
    task = "fill-mask"
    model = texts("mlm", task)

    (found,) = warned(model, task, text=f"{LONG} [MASK] {LONG}")

    assert found == (CUT, "The text was cut to 64 tokens; it has 2,823.")
    assert warned(model, task, text="a [MASK] a") == []


def test_a_context_is_read_to_its_end_and_a_long_question_is_cut(texts: Open) -> None:
    task = "question-answering"
    model = texts("qa", task)

    assert warned(model, task, question="a ?", context=LONG) == []
    assert warned(model, task, question="a " * 100, context="a") == [
        (CUT, "The question was cut to 24 tokens; it has 100.")
    ]


def test_names_are_found_to_the_end_of_a_text(texts: Open) -> None:
    assert warned(texts("ner", "token-classification"), "token-classification", text=LONG) == []


def test_rows_of_a_table_that_do_not_fit_are_told(texts: Open) -> None:
    task = "table-question-answering"
    model = texts("tapas", task)

    found = warned(model, task, query="a ?", table={"a": ["b"] * 300})

    assert [code for code, _ in found] == [WarningCode.ROWS_LEFT_OUT]
    assert found[0][1] == "The model read the first 123 of the table's 300 rows."
    assert warned(model, task, query="a ?", table={"a": ["b"] * 123}) == []
    (query,) = warned(model, task, query="a " * 100, table={"a": ["b"]})
    assert query == (CUT, "The query was cut to 64 tokens; it has 100.")


@pytest.mark.parametrize("kind", ["classifier", "ner", "mlm", "nli"])
def test_a_text_in_an_alphabet_that_the_model_has_not_learnt(texts: Open, kind: str) -> None:
    task, text, more = {
        "classifier": ("text-classification", "東京は大きい mill", {}),
        "ner": ("token-classification", "東京は大きい mill", {}),
        "mlm": ("fill-mask", "東京は大きい mill [MASK]", {}),
        "nli": ("zero-shot-classification", "東京", {"classes": ["a"]}),
    }[kind]
    found = warned(texts(kind, task), task, text=text, **more)

    if kind == "nli":
        # Its tokens are bytes: it knows all of them.
        assert found == []
        return
    ((code, said),) = found
    assert code is UNKNOWN
    assert said == "5 of the 7 tokens of the text are unknown to the model."
    known = text.replace("東京は大きい", "wheel " * 3)
    assert warned(texts(kind, task), task, text=known, **more) == []


def test_an_embedding_and_each_sentence_tell_what_was_cut(
    open_model: OpenModel, tiny: Callable[..., Path]
) -> None:
    model = open_model(
        folder_entry(tiny("encoder"), "text-embedding").model_copy(
            update={"tasks": ("text-embedding", "sentence-similarity")}
        )
    )
    long = "a" * 100

    assert warned(model, "text-embedding", text=long) == [(CUT, "The text was cut to 24 tokens; it has 102.")]
    item: dict[str, Any] = {"source_sentence": "a", "sentences": ["a", long, long + "a"]}
    for _ in range(2):
        # The second time, the tokens of the sentences are kept.
        assert warned(model, "sentence-similarity", **item) == [
            (CUT, "sentences.2 was cut to 24 tokens; it has 103. 1 more of sentences were cut, too.")
        ]


def test_a_summary_tells_where_the_text_and_the_answer_were_cut(writes: Open) -> None:
    model = writes("t5", "summarization")

    found = warned(
        model, "summarization", text="mill " * 500, config={"max_new_tokens": 4, "min_new_tokens": 4}
    )

    assert [code for code, _ in found] == [CUT, WarningCode.OUTPUT_CUT]
    assert found[0][1].startswith("The text was cut to 64 tokens; it has 2,")
    assert found[1][1] == "The text ends at max_new_tokens, 4 tokens; the model had not ended it."


def test_an_end_that_the_model_was_forced_to_write_is_a_cut(writes: Open) -> None:
    model = writes("bart", "summarization")

    (found,) = warned(model, "summarization", text="mill", config={"max_new_tokens": 5, "min_new_tokens": 4})

    assert found == (
        WarningCode.OUTPUT_CUT,
        "The text ends at max_new_tokens, 5 tokens; the model had not ended it.",
    )


def test_a_chat_shows_a_cut_by_its_reason_alone(writes: Open) -> None:
    model = writes("llama", "chat-completion")
    item = {
        "messages": [{"role": "user", "content": "Hello"}],
        "config": {"max_new_tokens": 3, "min_new_tokens": 3},
    }

    assert warned(model, "chat-completion", **item) == []


class TestEmptyAnswers:
    def test_a_continuation_that_ends_at_once_says_what_to_do(self, mute: LoadedModel) -> None:
        found = warned(mute, "text-generation", text="Who?", config={"chat_template": False})

        assert found == [
            (EMPTY, f"The text is empty: the model ended it at once.{HINT}"),
        ]
        assert "set config.chat_template to true" in HINT

    def test_an_answer_that_ends_at_once_is_told(self, mute: LoadedModel) -> None:
        assert warned(mute, "text-generation", text="Who?") == [
            (EMPTY, "The text is empty: the model ended it at once.")
        ]

    def test_a_stop_string_at_the_beginning_is_told(self, writes: Open) -> None:
        model = writes("llama", "text-generation")
        config = {"chat_template": False, "max_new_tokens": 5, "min_new_tokens": 5}
        (output,) = model.answer("text-generation", {"text": "Who?", "config": config})
        first = output.model_dump()["choices"][0]["text"][0]

        ((code, said),) = warned(model, "text-generation", text="Who?", config={**config, "stop": [first]})

        assert code is EMPTY
        assert said == (
            "The text is empty: the model ended it at once, or it begins with a string of config.stop."
        )


class TestTemplates:
    def test_a_model_with_a_template_answers_and_one_without_continues(self, writes: Open) -> None:
        for kind, chats in (("llama", True), ("gpt2", False)):
            runner = writes(kind, "text-generation").runner("text-generation")

            def prompt(text: str = "Who?", *, of: Any = runner, **config: Any) -> str:
                item = {"text": text, "config": config}
                prepared = of.preprocess(modelmill_input("text-generation", item))
                return str(of.weights.tokenizer.decode(prepared.data.prompt))

            asked = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
            assert prompt() == (asked if chats else "Who?")
            assert prompt(chat_template=False) == "Who?"
            assert prompt(return_full_text=True) == "Who?"
            assert prompt(special_tokens=True) == "Who?"
            if chats:
                assert prompt(chat_template=True, return_full_text=True) == asked
                assert prompt(system_message="S").startswith("<|im_start|>system\nS<|im_end|>\n")

    def test_special_tokens_are_read_if_the_caller_asks_for_them(self, writes: Open) -> None:
        runner = writes("gpt2", "text-generation").runner("text-generation")
        end = runner.weights.special["<|end|>"]

        def ids(**config: Any) -> list[int]:
            item = modelmill_input("text-generation", {"text": "a<|end|>", "config": config})
            found: list[int] = list(runner.preprocess(item).data.prompt)
            return found

        assert ids(special_tokens=True)[-1] == end
        assert end not in ids()
        assert len(ids()) > 2

    @pytest.mark.parametrize(
        "config",
        [
            {"chat_template": False, "system_message": "S"},
            {"special_tokens": True, "chat_template": True},
            {"special_tokens": True, "system_message": "S"},
        ],
    )
    def test_settings_that_exclude_each_other_are_refused(self, config: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="leave"):
            modelmill_input("text-generation", {"text": "a", "config": config})


def modelmill_input(task: str, item: dict[str, Any]) -> Any:
    from modelmill_tasks.registry import find_task

    return find_task(task).input.model_validate(item)


def test_a_run_raises_a_warning_for_each_item_where_it_was_called(texts: Open) -> None:
    model = texts("classifier", "text-classification")

    with pytest.warns(InputWarning) as caught:
        model.run(text=["a", LONG, "a", LONG])

    assert [str(one.message) for one in caught] == [
        f"item {index}: The text was cut to 64 tokens; it has 1,412." for index in (1, 3)
    ]
    assert {one.filename for one in caught} == {__file__}
    raised = [one.message for one in caught if isinstance(one.message, InputWarning)]
    assert [(one.item, one.code) for one in raised] == [(1, CUT), (3, CUT)]

    with pytest.warns(modelmill.InputWarning, match=r"^The text was cut to 64 tokens"):
        model(text=LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        with pytest.raises(InputWarning):
            model(text=LONG)
        model(text="a")


def test_the_command_prints_a_line_for_each_warning(
    tiny_text: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_task("text-classification", str(tiny_text("classifier")), ["text=a", f"text={LONG}"])

    out, err = capsys.readouterr()
    assert out.startswith("[{")
    assert err.splitlines() == ["warning: item 1: The text was cut to 64 tokens; it has 1,412."]
