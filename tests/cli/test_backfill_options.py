"""The command ``backfill`` writes its defaults a second time, so that ``--help`` imports no client."""

from __future__ import annotations

import inspect
from dataclasses import fields

from modelmill.client.backfill import BackfillOptions
from modelmill.client.backfill.options import BackfillKeywords
from modelmill_cli.commands.backfill import backfill


def test_the_command_has_the_defaults_of_the_options() -> None:
    parameters = inspect.signature(backfill).parameters

    shared = [field for field in fields(BackfillOptions) if field.name in parameters]

    assert {field.name for field in shared} >= {"lane", "window", "retries", "shard_rows", "give_up_after_s"}
    assert [parameters[field.name].default for field in shared] == [field.default for field in shared]


def test_type_checkers_know_every_option_as_a_keyword() -> None:
    declared = {field.name: field.type for field in fields(BackfillOptions)}

    assert {name: hint.__forward_arg__ for name, hint in BackfillKeywords.__annotations__.items()} == declared
