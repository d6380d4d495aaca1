"""The command ``backfill`` writes its defaults a second time, so that ``--help`` imports no client."""

from __future__ import annotations

import inspect
from dataclasses import fields

from modelmill.client.backfill import BackfillOptions
from modelmill_cli.commands.backfill import backfill


def test_the_command_has_the_defaults_of_the_options() -> None:
    parameters = inspect.signature(backfill).parameters

    shared = [field for field in fields(BackfillOptions) if field.name in parameters]

    assert {field.name for field in shared} >= {"lane", "window", "retries", "shard_rows", "give_up_after_s"}
    assert [parameters[field.name].default for field in shared] == [field.default for field in shared]
