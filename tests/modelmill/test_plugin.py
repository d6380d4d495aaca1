"""``modelmill.plugin``: the public names are there, and each is explained."""

from __future__ import annotations

import inspect
import re

import pytest

from modelmill import plugin
from tests.support.paths import REPOSITORY


@pytest.mark.parametrize("name", plugin.__all__)
def test_a_public_name_is_there_and_is_explained(name: str) -> None:
    value = getattr(plugin, name)

    assert re.search(rf"^- .*``{name}``.*: ", plugin.__doc__ or "", re.MULTILINE), (
        "not in the module's docstring"
    )
    assert f"`{name}`" in (REPOSITORY / "docs" / "plugins.md").read_text()
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__


def test_only_public_names_are_listed() -> None:
    assert dir(plugin) == sorted(plugin.__all__) == sorted(plugin._MODULES)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"'modelmill\.plugin' has no attribute 'find_task'"):
        plugin.find_task  # noqa: B018
