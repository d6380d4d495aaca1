"""Users' functions and classes as models of the task ``custom``; and additional config keys of a runner."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelmill.catalogue import ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.store import Claimed
from modelmill_backends.contract import Prepared
from modelmill_backends.loader import LoadedModel
from modelmill_backends.noop.zero_shot_image_classification import NoopRunner
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.zero_shot_image_classification import Input
from modelmill_worker.drain.batches import form_batches, preprocess, run_batch
from modelmill_worker.drain.jobs import item_json, open_job
from tests.fixtures.callables import Scaler
from tests.support.models import ZERO_SHOT, OpenModel

TASK = "custom"


def entry(name: str, **fields: Any) -> ModelEntry:
    return ModelEntry(
        name="mine",
        backend="custom",
        runner=name if ":" in name or name == "default" else f"tests.fixtures.callables:{name}",
        tasks=(TASK,),
        **fields,
    )


def ask(model: LoadedModel, *inputs: Any, **config: Any) -> list[dict[str, Any]]:
    outputs = model.answer(TASK, *({"input": value, "config": config} for value in inputs))
    return [output.model_dump(mode="json")["output"] for output in outputs]


def in_worker(model: LoadedModel, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The result of a batched job, as a worker makes it."""
    runner = model.runner(TASK)
    claimed = Claimed("job", "fence", TASK, batched=True, bytes=0, deliveries=1, queued_s=0.0)
    job = open_job(claimed, json.dumps(body).encode())
    assert job.error is None
    for item in job.items:
        preprocess(runner, item)
    for batch in form_batches(job.items, 16):
        run_batch(runner, batch)
    return [json.loads(item_json(item)) for item in job.items]


def test_the_built_in_example_counts_words(open_model: OpenModel) -> None:
    (output,) = ask(open_model("word-count"), "Müllers Mühle: die Mühle mahlt.", top_k=1)

    assert output == {"words": 5, "most_common": [["mühle", 2]]}


@pytest.mark.parametrize(
    ("body", "field"),
    [({"input": 5}, "input"), ({"input": "a", "config": {"top_k": "many"}}, "config.top_k")],
)
def test_a_function_may_refuse_an_input_by_its_field(
    open_model: OpenModel, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(ModelmillError) as caught:
        open_model("word-count").answer(TASK, body)

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert caught.value.fields[0].field == field


def test_a_function_is_called_once_for_all_items_of_equal_config(open_model: OpenModel) -> None:
    body = {"input": [1, [2], None], "config": [{"a": 1, "b": 2}, {"c": 3}, {"b": 2, "a": 1}]}

    first, second, third = (item["output"] for item in in_worker(open_model(entry("echo")), body))

    assert (first["input"], first["together"]) == (1, 2)
    assert (second["input"], second["together"]) == ([2], 1)
    assert (third["input"], third["together"]) == (None, 2)
    assert first["config"] == third["config"] == {"a": 1, "b": 2}


def test_a_class_gets_the_entry_s_options_and_is_closed_with_the_model(context_of: Any) -> None:
    options = {"factor": 3}
    before = Scaler.closed

    model = LoadedModel(context_of(entry("Scaler", options=options))).load()
    assert ask(model, 2, 5) == [{"scaled": 6}, {"scaled": 15}]
    model.close()

    assert Scaler.closed == before + 1
    assert options == {"factor": 3}


def test_of_a_batch_that_raises_the_item_to_blame_fails_alone(open_model: OpenModel) -> None:
    done = in_worker(open_model(entry("fails_on_bad")), {"input": ["a", "b", "bad", "c"]})

    assert [item.get("output") for item in done] == [{"good": "a"}, {"good": "b"}, None, {"good": "c"}]
    assert done[2]["error"]["code"] == "inference_failed"
    assert "ValueError: a bad one is among them" in done[2]["error"]["message"]


def test_what_a_failed_call_did_to_its_arguments_reaches_no_second_one(open_model: OpenModel) -> None:
    done = in_worker(open_model(entry("spoils_its_arguments")), {"input": [[1], [2], [3]], "config": {}})

    assert [item["output"]["input"] for item in done] == [[1, "spoiled"], [2, "spoiled"], [3, "spoiled"]]


def test_tuples_become_lists(open_model: OpenModel) -> None:
    assert ask(open_model(entry("gives")), 1, what="a tuple") == [{"pair": [1, "a"]}]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"what": "a number"}, "returned int for this input, not a dict"),
        ({"what": "none"}, "returned NoneType for this input, not a dict"),
        ({"what": "an array"}, "returned output.vector of type ndarray, which JSON cannot express"),
        ({"what": "a numpy number"}, "returned output.score of type float64, which JSON cannot express"),
        ({"what": "not a number"}, "returned output.deep[0].score = nan, which JSON cannot express"),
        ({"what": "bytes"}, "returned output.data of type bytes, which JSON cannot express"),
        ({"what": "a number as key"}, "returned output.scores with a key of type int, not a text"),
        ({"what": "nothing", "whole": True}, "got 1 inputs and returned 0 outputs"),
        ({"what": "two", "whole": True}, "got 1 inputs and returned 2 outputs"),
        ({"what": "a dict", "whole": True}, "returned dict, not a list with one dict per input"),
        ({"what": "none", "whole": True}, "returned NoneType, not a list with one dict per input"),
    ],
)
def test_a_wrong_answer_is_told_with_what_is_wrong(
    open_model: OpenModel, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelmillError) as caught:
        ask(open_model(entry("gives")), "x", **config)

    assert caught.value.code is ErrorCode.INFERENCE_FAILED
    assert caught.value.message == f"tests.fixtures.callables:gives {said}."


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (entry("default"), 'name your function or class as runner = "package.module:object"'),
        (entry("no_such_module:f"), "No module named 'no_such_module'"),
        (entry("no_such_function"), "no attribute 'no_such_function'"),
        (entry("NOT_CALLABLE"), "is not a runner for custom"),
        (entry("echo", options={"factor": 2}), "is a function and takes no options"),
        (entry("WithoutCall"), "has no __call__(self, inputs, config)"),
        (entry("Scaler"), "KeyError: 'factor'"),
        (entry("echo", source=Source(hub="a/b")), "reads no source"),
    ],
)
def test_what_cannot_be_called_is_told_when_it_is_loaded(
    context_of: Any, wrong: ModelEntry, said: str
) -> None:
    with pytest.raises(ModelmillError) as caught:
        LoadedModel(context_of(wrong)).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert said in caught.value.message


def test_only_the_backend_custom_calls_functions(context_of: Any) -> None:
    other = entry("echo").model_copy(update={"backend": "transformers"})

    with pytest.raises(ModelmillError, match="is not a runner for custom"):
        LoadedModel(context_of(other)).load()


class ToneRunner(NoopRunner):
    """Reads ``config.tone``, which the task does not know."""

    backend = "test"

    def preprocess(self, item: Input) -> Prepared[Input]:
        tones: dict[str, int] = {"low": 1, "high": 2}
        return Prepared(item, tones[item.config.model_dump().get("tone") or "low"])


def toned(keys: tuple[str, ...]) -> ModelEntry:
    runner = f"{__name__}:ToneRunner"
    return ModelEntry(name="toned", backend="test", runner=runner, tasks=(ZERO_SHOT,), config_keys=keys)


def test_a_config_key_that_an_entry_declares_reaches_its_runner(open_model: OpenModel) -> None:
    model = open_model(toned(("tone",)))
    configs: list[dict[str, Any]] = [{"tone": "high", "multi_label": True}, {}]

    outputs = model.answer(
        ZERO_SHOT, *({"image": CAT, "classes": ["cat"], "config": config} for config in configs)
    )

    # The runner gives as many classes as the tone says.
    assert [len(output.model_dump()["probabilities"]) for output in outputs] == [2, 1]


def test_a_config_key_that_no_entry_declares_is_named() -> None:
    item = {"image": CAT, "classes": ["cat"], "config": {"tone": "high"}}

    for contract in (find_task(ZERO_SHOT), find_task(ZERO_SHOT).with_config_keys(("pitch",))):
        with pytest.raises(ModelmillError) as caught:
            contract.parse(json.dumps(item), trusted=True)
        assert caught.value.code is ErrorCode.INVALID_INPUT
        assert [error.field for error in caught.value.fields] == ["config.tone"]
