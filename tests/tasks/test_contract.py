from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Annotated, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Lane
from modelmill_tasks.contract import MAX_ITEMS, Batched, Example, Task, TaskConfig, TaskInput, TaskOutput
from modelmill_tasks.registry import all_tasks, find_task
from modelmill_tasks.shared.examples import CAT

ZERO_SHOT = find_task("zero-shot-image-classification")
EMBEDDING = find_task("text-embedding")

MARK = "MARK" * 2500
"""10 kB that no error message may repeat."""


class Scale(TaskConfig):
    scale: int = 1


class TwoLists(TaskInput):
    """A task as a plugin may define it: two batched fields, one of them a list itself."""

    words: Annotated[Annotated[list[str], Field(max_length=3)], Batched]
    number: Annotated[int, Batched()] = Field(0, description="Any number.")
    labels: list[int] = Field(default_factory=lambda: [7])
    title: Annotated[str, Field(max_length=5)] = "none"
    config: Scale = Field(default_factory=Scale)


class NoOutput(TaskOutput):
    pass


TWO_LISTS = Task("two-lists", "A test.", TwoLists, NoOutput, Example({"words": ["a"]}, {}, "none"))


def parsed(task: Task, body: Any, *, batched: bool = False, trusted: bool = True) -> TaskInput:
    """Trusts images, unless a test says otherwise: most tests send a word in place of an image."""
    return task.parse(json.dumps(body), batched=batched, trusted=trusted)


def refusal(task: Task, body: Any, *, batched: bool = False, trusted: bool = True) -> ModelmillError:
    text = body if isinstance(body, (bytes, str)) else json.dumps(body)
    with pytest.raises(ModelmillError) as caught:
        task.parse(text, batched=batched, trusted=trusted)
    error = caught.value
    everything = error.message + "".join(field.field + field.message for field in error.fields)
    assert MARK not in everything
    assert len(everything) < 5000
    assert error.message.startswith(error.fields[0].field) or error.fields[0].field in error.message
    return error


def names(error: ModelmillError) -> list[str]:
    return [field.field for field in error.fields]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_echoed_or_passed_on_holds_only_numbers_that_json_has(number: str) -> None:
    wider = EMBEDDING.with_config_keys(("extra",))
    for task, fields, at in (
        (EMBEDDING, f'"text": "x", "metadata": {{"a": [{{"b": {number}}}]}}', "metadata"),
        (wider, f'"text": "x", "config": {{"extra": [{number}]}}', "config.extra"),
        (find_task("custom"), f'"input": {number}', "input"),
        (find_task("custom"), f'"input": 1, "config": {{"a": {number}}}', "config"),
    ):
        error = refusal(task, f"{{{fields}}}", trusted=False)
        assert names(error) == [at]
        assert "a number that JSON does not have" in error.message


@pytest.mark.parametrize("task", all_tasks().values(), ids=all_tasks())
class TestEveryTask:
    def test_its_example_parses_and_its_output_is_one(self, task: Task) -> None:
        request = task.parse(json.dumps(task.example.input))

        assert task.items(request) == [request]
        task.output.model_validate(task.example.output)

    def test_its_example_parses_as_a_batched_job(self, task: Task) -> None:
        plain = task.parse(json.dumps(task.example.input))
        lists = {
            name: [value] * 2 if name in task.batched_fields else value
            for name, value in task.example.input.items()
        }

        request = task.parse(json.dumps(lists), batched=True)

        assert task.items(request) == [plain, plain]

    def test_its_fields_are_batched_shared_or_the_jobs_own(self, task: Task) -> None:
        own = set(TaskInput.model_fields)

        assert set(task.batched_fields) | set(task.shared_fields) | own == set(task.input.model_fields)
        assert not set(task.batched_fields) & set(task.shared_fields)
        assert set(task.batched_input.model_fields) == set(task.input.model_fields)

    def test_config_and_lane_may_be_left_out(self, task: Task) -> None:
        assert {"config", "lane", "options"}.isdisjoint(task.input.model_json_schema()["required"])
        assert {"config", "lane", "options"}.isdisjoint(task.batched_input.model_json_schema()["required"])

    def test_batched_fields_are_lists_in_the_batched_schema(self, task: Task) -> None:
        plain = task.input.model_json_schema()["properties"]
        lists = task.batched_input.model_json_schema()["properties"]

        for name in task.batched_fields:
            assert lists[name]["type"] == "array"
            assert (lists[name]["minItems"], lists[name]["maxItems"]) == (1, MAX_ITEMS)
            for key in plain[name].keys() - {"title", "description"}:
                assert lists[name]["items"][key] == plain[name][key]

    def test_shared_fields_are_one_value_or_a_list_in_the_batched_schema(self, task: Task) -> None:
        lists = task.batched_input.model_json_schema()["properties"]

        for name in task.shared_fields:
            kinds = lists[name]["oneOf"]
            assert kinds[1]["type"] == "array"
            assert kinds[1]["maxItems"] == MAX_ITEMS
            assert kinds[1]["items"] == kinds[0]

    def test_nothing_beyond_the_contract_is_taken(self, task: Task) -> None:
        for model in (task.input, task.batched_input):
            assert model.model_json_schema()["additionalProperties"] is False


def test_media_fields_say_so_in_the_schema() -> None:
    schema = ZERO_SHOT.input.model_json_schema()["properties"]["image"]

    assert schema["contentEncoding"] == "base64"
    assert schema["contentMediaType"] == "image/*"
    assert "data URL" in schema["description"]


def test_bounds_reach_the_schema() -> None:
    classes = ZERO_SHOT.input.model_json_schema()["properties"]["classes"]

    assert (classes["minItems"], classes["maxItems"]) == (1, 1000)
    assert (classes["items"]["minLength"], classes["items"]["maxLength"]) == (1, 500)


def test_the_fields_follow_from_the_marks() -> None:
    assert TWO_LISTS.batched_fields == ("words", "number")
    assert TWO_LISTS.shared_fields == ("labels", "title", "config")


def test_a_task_without_a_batched_field_is_a_mistake_of_its_author() -> None:
    class Nothing(TaskInput):
        text: str

    with pytest.raises(TypeError, match=r"task nothing: mark at least one input field with Batched"):
        dataclasses.replace(TWO_LISTS, name="nothing", input=Nothing).batched_input  # noqa: B018


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("batched", [False, True])
def test_a_job_takes_a_lane_and_options(lane: Lane, batched: bool) -> None:
    text = ["hello"] if batched else "hello"
    options = {"use_cache": False, "wait_for_model": True}

    request = parsed(EMBEDDING, {"text": text, "lane": lane.value, "options": options}, batched=batched)

    assert request.lane is lane
    assert request.options is not None
    assert request.options.model_dump() == options


def test_the_lane_is_normal_unless_told() -> None:
    assert parsed(EMBEDDING, {"text": "hello"}).lane is Lane.NORMAL
    assert parsed(EMBEDDING, {"text": ["hello"]}, batched=True).lane is Lane.NORMAL


def test_one_list_of_classes_is_for_all_items() -> None:
    request = parsed(ZERO_SHOT, {"image": ["a", "b"], "classes": ["cat", "dog"]}, batched=True)

    assert [item.model_dump()["classes"] for item in ZERO_SHOT.items(request)] == [["cat", "dog"]] * 2


def test_a_list_of_lists_of_classes_is_one_an_item() -> None:
    body = {"image": ["a", "b"], "classes": [["cat"], ["dog", "bird"]]}

    request = parsed(ZERO_SHOT, body, batched=True)

    assert [item.model_dump()["classes"] for item in ZERO_SHOT.items(request)] == [["cat"], ["dog", "bird"]]


def test_one_config_is_for_all_items_and_a_list_is_one_an_item() -> None:
    one = parsed(EMBEDDING, {"text": ["a", "b"], "config": {"normalize": True}}, batched=True)
    each = parsed(EMBEDDING, {"text": ["a", "b"], "config": [{"normalize": True}, {}]}, batched=True)

    def normalize(request: TaskInput) -> list[bool | None]:
        return [item.model_dump()["config"]["normalize"] for item in EMBEDDING.items(request)]

    assert normalize(one) == [True, True]
    assert normalize(each) == [True, None]


def test_a_batched_field_may_be_a_list_itself() -> None:
    request = parsed(TWO_LISTS, {"words": [["a", "b"], []], "number": [1, 2]}, batched=True)

    assert [item.model_dump(include={"words", "number", "labels"}) for item in TWO_LISTS.items(request)] == [
        {"words": ["a", "b"], "number": 1, "labels": [7]},
        {"words": [], "number": 2, "labels": [7]},
    ]


def test_values_are_cleaned_in_a_batched_job_too() -> None:
    body = {"image": ["a"], "classes": [["  cat "]]}

    (item,) = ZERO_SHOT.items(parsed(ZERO_SHOT, body, batched=True))

    assert item.model_dump()["classes"] == ["cat"]


texts = st.text(st.characters(codec="utf-8"), max_size=5)
configs = st.one_of(st.just({}), st.builds(lambda scale: {"scale": scale}, st.integers(-5, 5)))


@st.composite
def batched_jobs(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A batched job of ``TWO_LISTS``, and the plain jobs that it is equal to."""
    count = draw(st.integers(1, 6))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    body = {"words": column(st.lists(texts, max_size=3)), "number": column(st.integers())}
    plain = [{name: values[index] for name, values in body.items()} for index in range(count)]
    shared = {"labels": st.lists(st.integers(0, 1), max_size=2), "title": texts, "config": configs}
    for name, values in shared.items():
        how = draw(st.sampled_from(["left out", "shared", "each"]))
        if how == "left out":
            continue
        body[name] = column(values) if how == "each" else draw(values)
        for index, item in enumerate(plain):
            item[name] = body[name][index] if how == "each" else body[name]
    return body, plain


@settings(max_examples=150, deadline=None)
@given(batched_jobs())
@example(({"words": [[]], "number": [0], "labels": []}, [{"words": [], "number": 0, "labels": []}]))
@example(({"words": [[]], "number": [0], "labels": [[]]}, [{"words": [], "number": 0, "labels": []}]))
def test_the_items_of_a_batched_job_are_the_plain_inputs(
    case: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    body, plain = case

    items = TWO_LISTS.items(parsed(TWO_LISTS, body, batched=True))

    assert items == [parsed(TWO_LISTS, item) for item in plain]
    assert all(type(item) is TwoLists for item in items)


@settings(max_examples=100, deadline=None)
@given(batched_jobs(), st.data())
def test_items_are_of_one_group_just_when_their_unbatched_fields_are_equal(
    case: tuple[dict[str, Any], list[dict[str, Any]]], data: st.DataObject
) -> None:
    items = [parsed(TWO_LISTS, item) for item in case[1]]
    one, other = data.draw(st.sampled_from(items)), data.draw(st.sampled_from(items))

    equal = all(getattr(one, name) == getattr(other, name) for name in TWO_LISTS.shared_fields)

    assert (TWO_LISTS.group_key(one) == TWO_LISTS.group_key(other)) == equal
    assert hash(TWO_LISTS.group_key(one)) is not None


def test_a_group_does_not_depend_on_how_a_default_was_given_nor_on_lane() -> None:
    bare = parsed(ZERO_SHOT, {"image": "a", "classes": ["cat"]})
    full = parsed(
        ZERO_SHOT,
        {"image": "b", "classes": [" cat"], "config": {"multi_label": None}, "lane": "bulk", "options": {}},
    )

    assert ZERO_SHOT.group_key(bare) == ZERO_SHOT.group_key(full)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"number": [1]}, "number"),
        ({"number": [1, 2, 3]}, "number"),
        ({"labels": [[1]]}, "labels"),
        ({"title": ["a", "b", "c"]}, "title"),
        ({"title": []}, "title"),
        ({"config": [{}]}, "config"),
        ({"config": []}, "config"),
    ],
)
def test_lists_of_unequal_length_name_the_field(change: dict[str, Any], field: str) -> None:
    body = {"words": [["a"], ["b"]], "number": [1, 2]} | change

    error = refusal(TWO_LISTS, body, batched=True)

    assert error.code is ErrorCode.INVALID_INPUT
    assert names(error) == [field]
    assert error.fields[0].message == f"has {len(change[field])} values, but words has 2"


@pytest.mark.parametrize("count", [0, MAX_ITEMS + 1, 50_000])
def test_a_batched_job_has_1_to_1024_items(count: int) -> None:
    error = refusal(EMBEDDING, {"text": ["a"] * count}, batched=True)

    assert names(error) == ["text"]
    assert str(count) in error.message


def test_1024_items_are_taken() -> None:
    request = parsed(EMBEDDING, {"text": ["a"] * MAX_ITEMS, "config": [{}] * MAX_ITEMS}, batched=True)

    assert len(EMBEDDING.items(request)) == MAX_ITEMS


GOOD = {"image": "x", "classes": ["cat", "dog"], "config": {}}

WRONG = [
    pytest.param({"image": MARK}, ["image"], id="no image"),
    pytest.param({"image": f"data:{MARK}"}, ["image"], id="not a data URL"),
    pytest.param({"image": f"http://{MARK}"}, ["image"], id="URL"),
    pytest.param({"image": f"file:{MARK}"}, ["image"], id="file"),
    pytest.param({"image": {MARK: MARK}}, ["image"], id="image of a wrong type"),
    pytest.param({"classes": MARK}, ["classes"], id="classes of a wrong type"),
    pytest.param({"classes": {MARK: MARK}}, ["classes"], id="classes an object"),
    pytest.param({"classes": None}, ["classes"], id="classes null"),
    pytest.param({"classes": []}, ["classes"], id="no class"),
    pytest.param({"classes": ["cat", MARK]}, ["classes.1"], id="class too long"),
    pytest.param({"classes": ["cat", " "]}, ["classes.1"], id="class empty"),
    pytest.param({"classes": ["cat"] * 1001}, ["classes"], id="too many classes"),
    pytest.param({"classes": ["cat", {"a": MARK}]}, ["classes.1"], id="class of a wrong type"),
    pytest.param({"config": MARK}, ["config"], id="config of a wrong type"),
    pytest.param({"config": None}, ["config"], id="config null"),
    pytest.param({"config": {"colour": MARK}}, ["config.colour"], id="unknown config key"),
    pytest.param({"config": {"multi_label": MARK}}, ["config.multi_label"], id="not a boolean"),
    pytest.param({"config": {"hypothesis_template": MARK}}, ["config.hypothesis_template"], id="long"),
    pytest.param({"config": {"hypothesis_template": "none"}}, ["config.hypothesis_template"], id="no place"),
    pytest.param(
        {"config": {"hypothesis_template": "{}{}"}}, ["config.hypothesis_template"], id="two places"
    ),
    pytest.param({"colour": MARK}, ["colour"], id="unknown field"),
    pytest.param({"lane": MARK}, ["lane"], id="unknown lane"),
    pytest.param({"options": MARK}, ["options"], id="options of a wrong type"),
    pytest.param({"options": {"colour": MARK}}, ["options.colour"], id="unknown option"),
    pytest.param({"options": {"use_cache": MARK}}, ["options.use_cache"], id="wrong option"),
]


@pytest.mark.parametrize(("change", "fields"), WRONG)
def test_what_is_wrong_is_named_and_not_echoed(change: dict[str, Any], fields: list[str]) -> None:
    error = refusal(ZERO_SHOT, GOOD | {"image": CAT} | change, trusted=False)

    assert names(error) == fields
    assert error.code.value.startswith(("invalid_", "media_"))
    assert "MARK" not in error.message


@pytest.mark.parametrize(("change", "fields"), WRONG)
def test_what_is_wrong_in_a_batched_job_is_named_with_its_item(
    change: dict[str, Any], fields: list[str]
) -> None:
    item = GOOD | {"image": CAT} | change
    lists = {name: [GOOD.get(name, CAT), value] for name, value in item.items() if name in GOOD}
    lists["image"][0] = CAT
    body = item | lists

    error = refusal(ZERO_SHOT, body, batched=True, trusted=False)

    head, *rest = fields[0].split(".")
    assert names(error) == [".".join([head, "1", *rest]) if head in GOOD else fields[0]]
    assert "MARK" not in error.message


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("body", [{MARK: 1}, {"config": {MARK: 1}}, {"options": {MARK: {MARK: [MARK]}}}])
def test_of_a_name_that_the_caller_made_up_little_goes_back(body: dict[str, Any], batched: bool) -> None:
    error = refusal(EMBEDDING, {"text": ["a"] if batched else "a"} | body, batched=batched)

    assert [len(name) for name in names(error)] == [200]


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("", ErrorCode.INVALID_MEDIA),
        ("aGVsbG8=", ErrorCode.INVALID_MEDIA),
        ("https://example.com/cat.jpg", ErrorCode.MEDIA_SOURCE_REFUSED),
        (7, ErrorCode.INVALID_INPUT),
    ],
)
def test_a_medias_code_reaches_the_caller(image: object, code: ErrorCode) -> None:
    assert refusal(ZERO_SHOT, GOOD | {"image": image}, trusted=False).code is code
    assert refusal(ZERO_SHOT, GOOD | {"image": [CAT, image]}, batched=True, trusted=False).code is code


@pytest.mark.parametrize("batched", [False, True])
def test_what_is_missing_is_named(batched: bool) -> None:
    assert names(refusal(ZERO_SHOT, {}, batched=batched)) == ["image", "classes"]


def test_a_plain_job_takes_no_lists_and_a_batched_job_needs_them() -> None:
    assert names(refusal(EMBEDDING, {"text": ["a"]})) == ["text"]
    assert names(refusal(EMBEDDING, {"text": "a"}, batched=True)) == ["text"]


def test_mixed_nesting_names_the_item() -> None:
    mixed = {"image": ["a", "b"], "classes": [["cat"], "dog"]}

    assert names(refusal(ZERO_SHOT, mixed, batched=True)) == ["classes.1"]
    mixed["classes"] = ["cat", ["dog"]]
    assert names(refusal(ZERO_SHOT, mixed, batched=True)) == ["classes.1"]


def test_of_very_many_problems_some_are_named_and_the_rest_counted() -> None:
    error = refusal(ZERO_SHOT, GOOD | {"classes": [1] * 999})

    assert len(error.fields) == 20
    assert "(998 more)" in error.message


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"   ", id="blank"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"nonsense " + MARK.encode(), id="not JSON"),
        pytest.param(b"{'text': 'a'}", id="Python"),
        pytest.param(b'{"text": "a"} {"text": "b"}', id="two documents"),
        pytest.param(b"[]", id="array"),
        pytest.param(json.dumps([MARK]).encode(), id="array of text"),
        pytest.param(json.dumps(MARK).encode(), id="string"),
        pytest.param(b"null", id="null"),
        pytest.param(b"1" * 10_000, id="huge number"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b'{"text": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b'{"\xff": 1}', id="name not UTF-8"),
        pytest.param(b"\xff\xfe{\x00}\x00", id="UTF-16"),
        pytest.param(b'{"text": "\\ud800"}', id="lone surrogate"),
        pytest.param('{"text": "\ud800"}', id="lone surrogate in a str"),
        pytest.param(b"[" * 1_000_000, id="deep array"),
        pytest.param(b'{"text":' * 100_000, id="deep object"),
        pytest.param(b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}", id="deep field"),
        pytest.param(b'{"config":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, id="deep config"),
        pytest.param(b'{"text":["a"],"config":' + b"[" * 150 + b"]" * 150 + b"}", id="deep union"),
        pytest.param(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.", id="pickle"),
    ],
)
def test_a_body_that_is_no_request_is_an_invalid_input(body: bytes | str, batched: bool) -> None:
    error = refusal(EMBEDDING, body, batched=batched)

    assert error.code is ErrorCode.INVALID_INPUT
    assert "MARK" not in error.message


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(texts | st.sampled_from(sorted(TwoLists.model_fields)), inner, max_size=4)
        ),
        max_leaves=12,
    ),
    st.booleans(),
)
def test_no_json_raises_anything_but_our_error(body: Any, batched: bool) -> None:
    with suppress(ModelmillError):
        TWO_LISTS.items(parsed(TWO_LISTS, body, batched=batched))


def test_a_request_does_not_change() -> None:
    request = parsed(EMBEDDING, {"text": "a"})

    with pytest.raises(ValueError, match="frozen"):
        request.lane = Lane.BULK  # type: ignore[misc]


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ModelmillError, match="Did you mean text-embedding") as caught:
        find_task("text-embeding")

    assert caught.value.code is ErrorCode.TASK_NOT_FOUND


def test_tasks_come_in_alphabetical_order_under_their_names() -> None:
    assert list(all_tasks()) == sorted(all_tasks())
    assert all(name == task.name for name, task in all_tasks().items())


def test_a_body_of_very_many_keys_is_refused_before_it_is_parsed() -> None:
    body = b"{" + b",".join(b'"k%d" :1' % number for number in range(100_000)) + b"}"
    with pytest.raises(ModelmillError) as refused:
        find_task("text-embedding").parse(body)
    assert refused.value.code is ErrorCode.INVALID_INPUT
    assert "keys" in refused.value.message
