"""The commands show all texts of users and servers as they are, also texts that look like markup."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from modelmill.catalogue import ModelEntry
from modelmill.errors import ConfigError, ErrorCode, FieldError, ModelmillError
from modelmill_backends.conformance import Specimen
from modelmill_cli.app import app
from modelmill_cli.check import Finding, _table
from modelmill_cli.console import out
from modelmill_cli.jobs import show_document
from modelmill_cli.models_file import check_models_file
from modelmill_cli.options import show_errors
from tests.support.paths import REPOSITORY

PHOTO = str(REPOSITORY / "modelmill" / "data" / "chelsea.jpg")
TASK = "zero-shot-image-classification"


def test_classes_that_look_like_markup_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"status": "complete", "result": {"probabilities": [0.5, 0.3, 0.2]}}

    show_document(document, ["[b]", ":cat:", "[/x]"], as_json=False)

    shown = capsys.readouterr().out
    assert all(name in shown for name in ("[b]", ":cat:", "[/x]"))


def test_a_problem_with_a_field_of_any_name_is_shown(api: httpx.Client) -> None:
    fields = ("--image", PHOTO, "--classes", "[b],dog", "--config", '{"[/red]": 1}')

    result = CliRunner().invoke(app, ["submit", TASK, "noop", *fields, "--url", str(api.base_url)])

    assert result.exit_code == 1
    assert "config.[/red]" in result.output


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("/a folder/we[/ird]: name: should match '^[a-z0-9_-]{3,100}$'"),
        ModelmillError(
            ErrorCode.INVALID_INPUT,
            "[/b]: not [red]",
            fields=[FieldError("x", "y"), FieldError("we[/ird]", "should match '^[a-z0-9_-]{3,100}$'")],
        ),
        OSError(2, "No such file", "we[/ird]"),
    ],
)
def test_an_error_is_shown_word_for_word(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @show_errors
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit):
        command()

    shown = capsys.readouterr().err
    expected = [str(error)]
    if isinstance(error, ModelmillError):
        expected = [error.message, *(f"{field.field}: {field.message}" for field in error.fields[1:])]
    assert all(text in shown for text in expected)


def test_a_path_in_an_error_stays_in_one_piece(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / ("long-" * 20) / "we[/ird]"
    folder.mkdir(parents=True)
    models = folder / "models.toml"
    models.write_text('[models."[/b]"]\nbackend = "noop"\ntasks = ["text-embedding"]\n')

    with pytest.raises(typer.Exit):
        show_errors(check_models_file)(models)

    shown = capsys.readouterr().err
    assert f"{models}, line 1: model '[/b]': name: " in shown
    assert "'^[a-z0-9_-]{3,100}$'" in shown


def test_what_a_check_says_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    entry = ModelEntry(name="noop", backend="noop", tasks=(TASK,))
    specimen = Specimen("s[/1]", TASK, lambda _: entry)

    out.print(_table([Finding(specimen, "loads", "failed", "no [bold] key")]))

    shown = capsys.readouterr().out
    assert "s[/1]" in shown
    assert "no [bold]" in shown
