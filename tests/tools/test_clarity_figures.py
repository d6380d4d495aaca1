from __future__ import annotations

from tests.support.paths import REPOSITORY
from tools.clarity_figures import arrows_within, count_prose, find_circles, find_pages, find_upward, prose_of


def test_the_docs_say_who_acts() -> None:
    words, pronouns = count_prose(find_pages(REPOSITORY))

    assert 1000 * pronouns / words < 0.3


def test_prose_is_what_remains_without_code_tables_and_headings() -> None:
    page = "# Whoever\n\nA line.\n\n```bash\nwhoever\n```\n\n| nobody |\n| --- |\n\n- An item.\n"

    assert prose_of(page).split() == ["A", "line.", "-", "An", "item."]


def test_arrows_are_pairs_of_children_and_not_imports() -> None:
    imports = {
        "api.routes.jobs": {"api.body", "api.state"},
        "api.routes.bulk": {"api.body", "modelmill.errors"},
        "api.state": set[str](),
        "api.body": {"api.state"},
    }

    found = arrows_within("api", imports)

    assert (found.children, found.arrows) == (3, 3)


def test_a_circle_between_packages_is_found_although_no_modules_import_each_other() -> None:
    imports = {
        "api.routes.jobs": {"api.middleware.auth"},
        "api.middleware.head": {"api.routes.health"},
        "api.middleware.auth": set[str](),
        "api.routes.health": set[str](),
    }

    assert find_circles(imports) == [("api.middleware", "api.routes")]


def test_modules_that_import_each_other_are_a_circle() -> None:
    imports = {"api.a": {"api.b"}, "api.b": {"api.c"}, "api.c": {"api.a"}, "api.d": {"api.a"}}

    assert find_circles(imports) == [("api.a", "api.b", "api.c")]


def test_an_import_of_a_higher_layer_and_one_within_a_layer_point_up() -> None:
    imports = {
        "modelmill.cli.app": {"api.app"},
        "api.app": {"modelmill.store", "worker.node"},
        "modelmill_tasks.contract": {"modelmill_cli.app", "modelmill.errors"},
    }

    assert find_upward(imports) == [("api", "worker"), ("modelmill", "api"), ("tasks", "cli")]
    assert find_upward(imports, apart={"modelmill.cli"}) == [("api", "worker"), ("tasks", "cli")]
