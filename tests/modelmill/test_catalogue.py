from __future__ import annotations

import re
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest

from modelmill.catalogue import MODEL_NAME_PATTERN, RESERVED_NAMES, Catalogue, read_models_file
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from tests.support.paths import REPOSITORY

GOOD = 'backend = "onnx"\ntasks = ["text-embedding"]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The message that the operator reads."""
    with pytest.raises(ConfigError) as caught:
        read_models_file(path)
    return str(caught.value)


def test_the_built_in_catalogue_loads_and_its_names_can_stand_in_a_path() -> None:
    catalogue = Catalogue.load()

    assert {"conse-lite0", "efficientnet-lite0", "minilm"} <= set(catalogue)
    assert all(re.fullmatch(MODEL_NAME_PATTERN, name) and name == catalogue[name].name for name in catalogue)
    assert not RESERVED_NAMES & set(catalogue)
    assert len(catalogue) == len(list(catalogue))


def test_every_built_in_entry_has_a_description_and_its_needs() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    for name, entry in Catalogue.load().items():
        assert entry.description, name
        assert entry.license, name
        assert entry.memory_mib, name
        assert set(entry.requires) <= set(extras), name
        assert len(set(entry.tasks)) == len(entry.tasks), name


def test_a_built_in_hub_model_has_its_id_as_an_alias_and_a_whole_commit_if_any() -> None:
    for name, entry in Catalogue.load().items():
        if entry.source is not None and entry.source.hub:
            assert entry.source.hub in entry.aliases, name
            assert re.fullmatch("[0-9a-f]{40}|", entry.source.revision or ""), name


def test_built_in_weights_are_never_pickles_or_run_code_that_comes_with_them() -> None:
    for name, entry in Catalogue.load().items():
        assert not entry.options.get("trust_remote_code"), name


def test_the_users_file_adds_and_replaces_whole_entries(tmp_path: Path) -> None:
    path = written(tmp_path, f"[models.mine]\n{GOOD}\n[models.minilm]\n{GOOD}max_batch = 3\n")

    catalogue = Catalogue.load(path)

    assert catalogue["mine"].tasks == ("text-embedding",)
    assert catalogue["minilm"].max_batch == 3
    assert catalogue["minilm"].source is None, "an entry is replaced, not merged"
    assert set(catalogue) == set(Catalogue.load()) | {"mine"}


def test_serving_lists_the_models_of_a_task_in_order(tmp_path: Path) -> None:
    both = GOOD.replace("]", ', "other"]')
    path = written(tmp_path, f"[models.zzz]\n{both}[models.aaa]\n{both}")
    catalogue = Catalogue(read_models_file(path))

    assert catalogue.serving("other") == ["zzz", "aaa"]
    assert catalogue.serving("nothing") == []


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[models]\n"])
def test_a_file_without_entries_is_no_error(tmp_path: Path, text: str) -> None:
    assert read_models_file(written(tmp_path, text)) == {}


SPELLINGS = {
    "table": '[models.good]\nbackend = "onnx"\ntasks = ["t"]\n[models.bad-one]\n',
    "quoted table": '\n[models."bad-one"]\n',
    "literal quotes": "[ models . 'bad-one' ] # a comment\n",
    "after a sub-table": "[models.bad-one.options]\nmax_batch = 7\nbackend = 1\n[models.bad-one]\n",
    "after a lookalike": (
        '[models.backend]\nbackend = "onnx"\ntasks = ["t"]\ndescription = """\n[models.bad-one]\n'
        'max_batch = 0\n"""\n[models.bad-one]\n'
    ),
    "after a list of lists": (
        '[models.good]\nbackend = "onnx"\ntasks = [\n  "t",\n]\noptions = { grid = [\n[1],\n[2],\n] }\n'
        "# max_batch = 0\n[models.bad-one]\n"
    ),
}


@pytest.mark.parametrize("start", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize(
    ("body", "offset", "key"),
    [
        pytest.param(f"{GOOD}colour = 1\n", 2, "colour", id="unknown key"),
        pytest.param('backend = 3\ntasks = ["t"]\n', 0, "backend", id="wrong type"),
        pytest.param('backend = "onnx"\n\n# none\ntasks = [\n]\n', 3, "tasks", id="empty tasks"),
        pytest.param('backend = "onnx"\ntasks = [\n"t",\n7,\n]\n', 1, "tasks.1", id="wrong item"),
        pytest.param(f"{GOOD}max_batch = 0\n", 2, "max_batch", id="max_batch 0"),
        pytest.param(f"{GOOD}'max_batch' = 0\n", 2, "max_batch", id="quoted key"),
        pytest.param(f'{GOOD}devices = ["tpu"]\n', 2, "devices.0", id="unknown device"),
        pytest.param(f'{GOOD}source = {{ hub = "a/b", folder = "w" }}\n', 2, "source", id="two sources"),
        pytest.param(f"{GOOD}source = {{}}\n", 2, "source", id="no source"),
        pytest.param(f'{GOOD}source = {{ folder = "w", revision = "x" }}\n', 2, "source", id="revision"),
        pytest.param(f'{GOOD}source = {{ hub = "a/b", path = "x" }}\n', 2, "source", id="path"),
        pytest.param(f'{GOOD}source = {{ url = "http://x" }}\n', 2, "source.url", id="unknown source"),
        pytest.param(f'{GOOD}source.hub = "a"\nsource.revision = 1\n', 3, "source.revision", id="dotted"),
        pytest.param(f'{GOOD}[models.bad-one.source]\nhub = "a"\npath = "p"\n', 2, "source", id="sub-table"),
        pytest.param(f"{GOOD}[models.bad-one.source]\nhub = 1\n", 3, "source.hub", id="in a sub-table"),
        pytest.param(f'{GOOD}name = "other"\n', 2, "name", id="a second name"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(
    tmp_path: Path, start: str, body: str, offset: int, key: str
) -> None:
    path = written(tmp_path, f"{start}{body}\n[models.last]\n{GOOD}")

    lines = refusal(path).splitlines()

    line = start.count("\n") + 1 + offset
    assert lines[0].startswith(f"{path}, line {line}: model 'bad-one': {key}: "), lines


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        pytest.param(f'[models.good]\n{GOOD}\n[models.bad]\ntasks = ["t"]\n', 5, "backend", id="table"),
        pytest.param(
            '[models]\n\nbad = { tasks = ["t"], options = { backend = 1 } }\n', 3, "backend", id="inline"
        ),
        pytest.param("models.good = 1\n", 1, None, id="no table"),
        pytest.param('[models]\nbad.tasks = ["t"]\nbad.max_batch = 3\n', 2, "backend", id="dotted"),
        pytest.param('models = { bad = { tasks = ["t"] } }\n', 1, "backend", id="all inline"),
        pytest.param(
            '[models.bad.options]\nbackend = "x"\n[models.bad]\ntasks = ["t"]\n', 1, "backend", id="sub"
        ),
    ],
)
def test_a_missing_key_is_named_with_the_line_where_its_entry_begins(
    tmp_path: Path, text: str, line: int, key: str | None
) -> None:
    path = written(tmp_path, text)

    expected = f"model 'bad': {key}: Field required" if key else "model 'good' must be a table, [models.good]"
    assert refusal(path) == f"{path}, line {line}: {expected}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param('[models]\nbad.backend = "b"\nbad.tasks = ["t"]\nbad.max_batch = 0\n', 4, id="dotted"),
        pytest.param(
            'models.bad.backend = "b"\nmodels.bad.max_batch = 0\nmodels.bad.tasks = ["t"]\n', 2, id="top"
        ),
        pytest.param('[models]\nbad = { backend = "b", tasks = ["t"], max_batch = 0 }\n', 2, id="inline"),
        pytest.param(
            '[models]\n\n"bad" = { backend = "b", tasks = [\n"t"], max_batch = 0 }\n', 3, id="long inline"
        ),
    ],
)
def test_entries_that_are_no_tables_of_their_own_are_located_too(
    tmp_path: Path, text: str, line: int
) -> None:
    path = written(tmp_path, text)

    assert refusal(path).startswith(f"{path}, line {line}: model 'bad': max_batch: ")


def test_options_must_be_a_table(tmp_path: Path) -> None:
    path = written(tmp_path, f"[models.bad]\n{GOOD}options = 5\n")

    assert refusal(path).startswith(f"{path}, line 4: model 'bad': options: ")


def test_every_problem_of_an_entry_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path, '[models.bad]\nmax_batch = 0\ncolour = "red"\nbackend = "onnx"\n')

    lines = refusal(path).splitlines()

    found = {
        re.sub(rf"^{re.escape(str(path))}, line (\d+): model 'bad': (\w+): .+$", r"\2 \1", line)
        for line in lines
    }
    assert found == {"tasks 1", "max_batch 2", "colour 3"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Upper", "name"),
        ("ab", "name"),
        ("x" * 101, "name"),
        ('"with space"', "name"),
        ('"a/b/c"', "name"),
        ('"naïve"', "name"),
        ("batched", "entry"),
        ("jobs", "entry"),
        ("models", "entry"),
    ],
)
def test_a_bad_model_name_is_named_with_its_line(tmp_path: Path, name: str, key: str) -> None:
    path = written(tmp_path, f'# mine\n\n[models.{name}]\n{GOOD}options = {{ name = "x" }}\n')

    assert refusal(path).startswith(f"{path}, line 3: model '{name.strip(chr(34))}': {key}: ")


@pytest.mark.parametrize("name", ["abc", "x" * 100, "a-b_c-9", "---"])
def test_a_model_name_has_3_to_100_small_letters_digits_dashes_or_underscores(
    tmp_path: Path, name: str
) -> None:
    assert list(read_models_file(written(tmp_path, f"[models.{name}]\n{GOOD}"))) == [name]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[models.abc\n", "line 1"),
        (f"[models.abc]\n{GOOD}max_batch = = 2\n", "line 4"),
        (f"[models.abc]\n{GOOD}tasks = []\n", "line 4"),
        (f"[models.abc]\n{GOOD}[models.abc]\n", "line 4"),
        (f"[models.abc]\n{GOOD}options = [\n", "end of document"),
    ],
)
def test_a_syntax_error_names_file_and_place(tmp_path: Path, text: str, where: str) -> None:
    path = written(tmp_path, text)

    message = refusal(path)

    assert message.startswith(f"{path}: not valid TOML: ")
    assert where in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"[models.abc]\n{GOOD}\n[model.xyz]\n{GOOD}", 5),
        (f"[models.abc]\n{GOOD}model = 1\n[model]\n", 5),
        ("model = 1\n", 1),
        ("# models\n[[model]]\nx = 1\n", 2),
        ('description = """\nmodel = 1\n"""\n', 1),
    ],
)
def test_an_unknown_top_level_key_is_named_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = written(tmp_path, text)

    message = refusal(path)

    assert re.match(rf"{re.escape(str(path))}, line {line}: unknown key '(model|description)'", message), (
        message
    )
    assert "[models.NAME]" in message


@pytest.mark.parametrize(("text", "line"), [("\n[[models]]\nx = 1\n", 2), ("models = 3\n", 1)])
def test_models_must_be_tables(tmp_path: Path, text: str, line: int) -> None:
    path = written(tmp_path, text)

    assert refusal(path) == f"{path}, line {line}: entries are [models.NAME] tables"


def test_lines_are_counted_as_editors_count_them(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    # U+2028 and U+0085 end a line for str.splitlines, but for no editor and not in TOML.
    path.write_bytes(f"# a\u2028b\u0085c\r\n[models.abc]\r\n{GOOD}max_batch = 0\r\n".encode())

    assert refusal(path).startswith(f"{path}, line 5: model 'abc': max_batch: ")


def test_a_long_file_is_searched_quickly(tmp_path: Path) -> None:
    many = "".join(f"[models.model-{number}]\n{GOOD}" for number in range(1000))
    path = written(tmp_path, f"{many}[models.bad]\n{GOOD}max_batch = 0\n{many.replace('model-', 'other-')}")

    assert refusal(path).startswith(f"{path}, line 3004: model 'bad': max_batch: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"

    assert refusal(path).startswith(f"{path}: the models file cannot be read: ")
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        Catalogue.load(path)


@pytest.mark.parametrize("content", [b"# caf\xe9\n", b"\xff\xfe[\x00m\x00"])
def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(content)

    message = refusal(path)

    assert message.startswith(f"{path}: the models file cannot be read: ")
    assert "utf-8" in message


def test_a_folder_is_named_too(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path}: the models file cannot be read: ")


def test_a_relative_folder_belongs_to_the_file_and_not_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    text = dedent("""\
        [models.near]
        backend = "onnx"
        tasks = ["t"]
        source = { folder = "../weights" }
        [models.far]
        backend = "onnx"
        tasks = ["t"]
        source = { folder = "/srv/weights" }
        """)
    written(tmp_path / "config", text)
    monkeypatch.chdir(tmp_path)

    entries = read_models_file(Path("config/models.toml"))
    monkeypatch.chdir("/")

    near, far = entries["near"].source, entries["far"].source
    assert near is not None
    assert far is not None
    assert near.folder == tmp_path.resolve() / "weights"
    assert far.folder == Path("/srv/weights")


def test_find_gives_the_entry() -> None:
    assert Catalogue.load().find("minilm").name == "minilm"


def test_aliases_are_for_resolving_and_no_names_for_callers() -> None:
    catalogue = Catalogue.load()

    assert catalogue.resolve("sentence-transformers/all-MiniLM-L6-v2").name == "minilm"
    assert catalogue.resolve("minilm").name == "minilm"
    with pytest.raises(ModelmillError):
        catalogue.find("sentence-transformers/all-MiniLM-L6-v2")
    assert "sentence-transformers/all-MiniLM-L6-v2" not in catalogue


def test_an_unknown_alias_names_the_nearest() -> None:
    with pytest.raises(ModelmillError) as caught:
        Catalogue.load().resolve("sentence-transformers/all-minilm-l6")

    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    assert "sentence-transformers/all-MiniLM-L6-v2" in caught.value.message


def test_two_models_cannot_have_one_alias(tmp_path: Path) -> None:
    twice = f'[models.one]\n{GOOD}aliases = ["a/b", "c/d"]\n[models.two]\n{GOOD}aliases = ["c/d"]\n'

    with pytest.raises(ConfigError, match="Models 'one' and 'two' both have the alias 'c/d'"):
        Catalogue.load(written(tmp_path, twice))


def test_an_alias_cannot_be_another_models_name(tmp_path: Path) -> None:
    path = written(tmp_path, f'[models.one]\n{GOOD}aliases = ["one", "minilm"]\n')

    with pytest.raises(ConfigError, match="The alias 'minilm' of model 'one' is the name of another model"):
        Catalogue.load(path)


def test_a_name_or_an_alias_of_the_users_is_taken_from_the_built_in_entry(tmp_path: Path) -> None:
    alias = "sentence-transformers/all-MiniLM-L6-v2"
    catalogue = Catalogue.load(written(tmp_path, f'[models.mine]\n{GOOD}aliases = ["{alias}"]\n'))

    assert catalogue.resolve(alias).name == "mine"
    assert alias not in catalogue["minilm"].aliases


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("mini-lm", "minilm"), ("conse-lite", "conse-lite0"), ("clip", "clip-vit-base-patch32")],
)
def test_an_unknown_model_names_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(ModelmillError) as caught:
        Catalogue.load().find(asked)

    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    assert f"There is no model '{asked}'. Did you mean " in caught.value.message
    assert nearest in caught.value.message


@pytest.mark.parametrize("asked", ["", "qqqq", "?" * 10_000])
def test_an_unknown_model_near_to_none_lists_some_and_echoes_little(asked: str) -> None:
    with pytest.raises(ModelmillError) as caught:
        Catalogue.load().find(asked)

    assert "Known: " in caught.value.message
    assert f"{sorted(Catalogue.load())[19]} and " in caught.value.message
    assert asked[:101] not in caught.value.message or len(asked) <= 100
    assert len(caught.value.message) < 1000
