"""The Lua scripts as text: their arguments, their fields and their constants each stand in one place."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import redis

from modelmill.errors import ERRORS, ErrorCode
from modelmill.settings import Settings
from modelmill.store import keys, scripts
from modelmill.store.arguments import SIGNATURES, pack, pack_group

LUA = {
    file.name.removesuffix(".lua"): file.read_text()
    for file in (files("modelmill.store") / "lua").iterdir()
    if file.name.endswith(".lua")
}
SCRIPTS = sorted(LUA.keys() - {"common"})


def code(name: str) -> str:
    """A script without its comments."""
    return re.sub(r"--.*", "", LUA[name])


def test_each_script_has_a_signature() -> None:
    assert sorted(SIGNATURES) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_uses_each_of_its_arguments_by_name(name: str) -> None:
    signature = SIGNATURES[name]
    names = [argument.partition(":")[0] for argument in signature.names]

    assert [each for each in names if not re.search(rf"\b{each}\b", code(name))] == []
    fields = [each for each in signature.group if not re.search(rf"\w\.{each}\b", code(name))]
    assert fields == []
    assert not re.search(r"ARGV\[\d", code(name)), "an argument is read by its number"


def test_redis_refuses_a_name_that_is_not_an_argument(raw_redis: redis.Redis) -> None:
    source = scripts.script("file_delete").source
    listed = SIGNATURES["file_delete"].as_lua()
    assert listed in source

    with pytest.raises(redis.ResponseError, match="nonexistent global variable 'owner'"):
        raw_redis.eval(source.replace(listed, listed.replace("owner", "holder")), 0, "id", "owner")


@pytest.mark.parametrize("name", sorted(LUA))
def test_locals_are_named_like_the_fields_that_are_read_into_them(name: str) -> None:
    # A field whose name is taken, or is not a word of Lua, has another local.
    others = {
        "fence": {"fence"},
        "owner": {"current_owner"},
        "run_id": {"run_id"},
        "caller": {"caller", "job_caller"},
        "task": {"task", "seen_task"},
        "tries:": {"tries"},
        "sent:": {"sent"},
        "body:": {"body"},
    }
    found = re.findall(
        r"local ([\w,\s]+?)\s*=\s*read\([^,]+(?: \.\. [\w.]+)?,((?:[^()]|\([^()]*\))*)\)", code(name)
    )

    for names, arguments in found:
        local = [each.strip() for each in names.split(",")]
        fields = re.findall(r"'([\w:]+)'", arguments)
        assert len(local) == len(fields), (local, fields)
        for variable, field in zip(local, fields, strict=True):
            assert variable in others.get(field, {field}), f"{name}.lua: {variable} holds {field}"
    assert len(found) == code(name).count("= read(") + code(name).count("=\n    read(")


def test_arguments_are_packed_in_the_order_of_the_script() -> None:
    packed = pack("file_delete", owner="me", id="1")
    group = pack_group("beat", progress="", id="1", fence="f")

    assert packed == ["1", "me"]
    assert group == ["1", "f", ""]


@pytest.mark.parametrize(
    "arguments", [{"id": "1"}, {"id": "1", "owner": "me", "more": 1}, {"id": 1, "own": 2}]
)
def test_other_arguments_than_those_of_the_script_are_an_error(arguments: dict[str, str]) -> None:
    with pytest.raises((TypeError, KeyError)):
        pack("file_delete", **arguments)


def test_a_constant_that_is_not_defined_is_an_error() -> None:
    with pytest.raises(KeyError):
        keys.lua_table("return K.no_such_key")


def test_lua_takes_from_the_table_of_errors_whether_a_retry_may_help(
    raw_redis: redis.Redis, settings: Settings
) -> None:
    line = next(
        line
        for line in scripts.script("settle").source.split("\n")
        if line.startswith("local function retryable")
    )

    for error in ErrorCode:
        found = raw_redis.eval(f"{line}\nreturn retryable(ARGV[1]) and 1 or 0", 0, error.value)
        assert found == ERRORS[error].retryable, error
