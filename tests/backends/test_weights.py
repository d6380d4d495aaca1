"""Weights that are refused: their answers would be meaningless, or they would open other files."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from tests.support.models import folder_entry


def refused(context: LoadContext) -> str:
    with pytest.raises(ModelmillError) as caught:
        LoadedModel(context).load()
    assert caught.value.code == ErrorCode.MODEL_LOAD_FAILED
    return caught.value.message


def test_weights_without_the_head_of_the_task_are_refused(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    # The library would fill the missing layer at random, and every image would get a label.
    entry = folder_entry(tiny("clip"), "image-classification")
    said = refused(context_of(entry))
    assert "were not made for this task" in said
    assert "CLIPForImageClassification needs classifier." in said


def test_an_encoder_that_was_saved_without_a_pooler_still_loads(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    entry = folder_entry(tiny("vit"), "image-embedding")
    with_head = LoadedModel(context_of(entry)).load()
    with_head.close()


def test_weights_that_answer_rightly_only_with_their_own_code_are_refused_without_it(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    entry = folder_entry(tiny("encoder"), "text-embedding", options={"needs_remote_code": True})
    assert "set options.trust_remote_code = true if you trust it" in refused(context_of(entry))


WEIGHTS = "model.safetensors"
UNSAFE = re.compile(r"^\s*(import|from) (pickle|cPickle|joblib|dill|shelve|marshal)\b", re.MULTILINE)


class Payload:
    """Leaves a file behind if a pickle of it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def sharded(tiny_text: Callable[..., Path], tmp_path: Path) -> Path:
    """A model whose weights are one shard with an index."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_text("classifier"), folder)
    (folder / WEIGHTS).rename(folder / "shard.safetensors")
    indexed(folder, "shard.safetensors")
    return folder


def indexed(folder: Path, shard: Any, name: str = "model.safetensors.index.json") -> None:
    """Writes an index that names ``shard`` for every weight."""
    from safetensors import safe_open

    opening: Any = safe_open
    with opening(next(folder.glob("*.safetensors")), framework="np") as weights:
        names = list(weights.keys())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / name).write_text(json.dumps(index))


def of(folder: Path, **options: Any) -> Any:
    return folder_entry(folder, "text-classification", **options)


def test_a_model_of_several_shards_loads(sharded: Path, context_of: Callable[..., LoadContext]) -> None:
    with LoadedModel(context_of(of(sharded))).load() as model:
        assert model.answer("text-classification", {"text": "A mill."})


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        ("evil.bin", "names 'evil.bin'; only .safetensors files are read, never pickles"),
        ("evil.pt", "only .safetensors files"),
        ("evil.safetensors.bin", "only .safetensors files"),
        (
            "../outside.safetensors",
            "names '../outside.safetensors', which is no file in its folder",
        ),
        ("sub/../../outside.safetensors", "no file in its folder"),
        ("sub/shard.safetensors", "no file in its folder"),
        ("{absolute}", "no file in its folder"),
        ("..\\outside.safetensors", "no file in its folder"),
        ("..", "only .safetensors files"),
        ("", "only .safetensors files"),
        ("gone.safetensors", "names 'gone.safetensors', which is missing"),
        (7, "no file in its folder"),
    ],
)
def test_an_index_names_only_safetensors_files_of_its_folder(
    sharded: Path, context_of: Callable[..., LoadContext], shard: Any, said: str
) -> None:
    outside = sharded.parent / "outside.safetensors"
    shutil.copy(sharded / "shard.safetensors", outside)
    mark = sharded.parent / "ran"
    for name in ("evil.bin", "evil.pt", "evil.safetensors.bin"):
        (sharded / name).write_bytes(pickle.dumps(Payload(mark)))
    indexed(sharded, str(outside) if shard == "{absolute}" else shard)

    assert said in refused(context_of(of(sharded)))
    assert not mark.exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": ["x"]}}', "{}"])
def test_a_damaged_index_is_refused(
    sharded: Path, context_of: Callable[..., LoadContext], content: str
) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)

    assert "its index model.safetensors.index.json is damaged" in refused(context_of(of(sharded)))


def test_a_link_out_of_the_folder_is_refused(sharded: Path, context_of: Callable[..., LoadContext]) -> None:
    outside = sharded.parent / "outside"
    (sharded / "shard.safetensors").rename(outside)
    (sharded / "shard.safetensors").symlink_to(outside)

    assert "names 'shard.safetensors', which is a link out of the folder" in refused(context_of(of(sharded)))


def test_links_inside_of_a_folder_and_those_of_the_hubs_cache_are_followed(
    sharded: Path, context_of: Callable[..., LoadContext]
) -> None:
    (sharded / "shard.safetensors").rename(sharded / "other.safetensors")
    (sharded / "shard.safetensors").symlink_to("other.safetensors")
    repository = sharded.parent / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "0a1b", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sharded.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")

    for folder in (sharded, snapshot):
        with LoadedModel(context_of(of(folder))).load() as model:
            assert model.answer("text-classification", {"text": "A mill."})


def test_a_pickle_under_the_name_of_weights_is_never_unpickled(
    sharded: Path, context_of: Callable[..., LoadContext]
) -> None:
    mark = sharded.parent / "ran"
    pickled = pickle.dumps(Payload(mark))
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (sharded / name).write_bytes(pickled)
    with LoadedModel(context_of(of(sharded))).load():
        pass
    (sharded / "shard.safetensors").write_bytes(pickled)

    assert "transformers cannot load it" in refused(context_of(of(sharded)))

    for file in sharded.glob("*.safetensors*"):
        file.unlink()
    assert "pickles (.bin, .pt) are never read" in refused(context_of(of(sharded)))
    assert not mark.exists()


def test_the_weights_that_a_configuration_names_are_in_its_folder(
    sharded: Path, context_of: Callable[..., LoadContext]
) -> None:
    shutil.copy(sharded / "shard.safetensors", sharded.parent / "outside.safetensors")
    config = json.loads((sharded / "config.json").read_text())
    for named in ("../outside.safetensors", str(sharded.parent / "outside.safetensors"), "evil.bin"):
        (sharded / "config.json").write_text(json.dumps(config | {"transformers_weights": named}))

        assert "its configuration names the weights" in refused(context_of(of(sharded)))


def test_the_files_that_a_tokenizers_configuration_names_are_not_read(
    sharded: Path, context_of: Callable[..., LoadContext]
) -> None:
    with LoadedModel(context_of(of(sharded))).load() as model:
        wanted = model.answer("text-classification", {"text": "A mill."})
    outside = sharded.parent / "outside"
    outside.write_text("[UNK]\n[PAD]\nmill\n")
    file = sharded / "tokenizer_config.json"
    names = ("vocab_file", "tokenizer_file", "merges_file", "special_tokens_map_file")
    file.write_text(json.dumps(json.loads(file.read_text()) | dict.fromkeys(names, str(outside))))

    with LoadedModel(context_of(of(sharded))).load() as model:
        assert model.answer("text-classification", {"text": "A mill."}) == wanted


def test_python_code_in_a_folder_is_not_run(sharded: Path, context_of: Callable[..., LoadContext]) -> None:
    mark = sharded.parent / "ran"
    (sharded / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    for name in ("config.json", "tokenizer_config.json"):
        classes = {
            "AutoConfig": "evil.C",
            "AutoModelForSequenceClassification": "evil.M",
            "AutoTokenizer": ["evil.T", "evil.T"],
        }
        content = json.loads((sharded / name).read_text())
        (sharded / name).write_text(json.dumps(content | {"auto_map": classes, "model_type": "evil"}))

    assert "contains Python code" in refused(context_of(of(sharded)))
    assert not mark.exists()


def test_an_adapter_is_refused(sharded: Path, context_of: Callable[..., LoadContext]) -> None:
    (sharded / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc"}))

    assert "it is an adapter" in refused(context_of(of(sharded)))


@pytest.mark.parametrize("kind", ["Pooling", "Dense"])
def test_the_modules_of_a_sentence_encoder_are_in_its_folder(
    tiny: Callable[..., Path], tmp_path: Path, context_of: Callable[..., LoadContext], kind: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("encoder"), folder)
    for path in ("../other", str(tmp_path / "other")):
        modules = [{"idx": 0, "path": path, "type": f"sentence_transformers.models.{kind}"}]
        (folder / "modules.json").write_text(json.dumps(modules))

        for backend in ("transformers", "onnx"):
            entry = folder_entry(folder, "text-embedding", backend)
            assert "it names a path outside of its folder" in refused(context_of(entry))


def test_an_onnx_file_reads_no_data_outside_of_its_folder(
    tmp_path: Path, context_of: Callable[..., LoadContext]
) -> None:
    import numpy as np
    from onnx import TensorProto, helper

    from modelmill_backends.onnx.session import open_session

    folder = tmp_path / "model"
    folder.mkdir()
    for data in (tmp_path / "outside", folder / "inside"):
        np.arange(4, dtype=np.float32).tofile(data)

    def opened(location: str) -> Any:
        weight = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=location)
        values = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
        nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (folder / "model.onnx").write_bytes(made.SerializeToString())
        return open_session(folder / "model.onnx", context_of(of(folder)))

    assert opened("inside").run(None, {"x": np.ones(4, np.float32)})[0].tolist() == [1, 2, 3, 4]
    for location in ("../outside", str(tmp_path / "outside")):
        with pytest.raises(Exception, match="External data path"):
            opened(location)


def test_a_pipelines_parts_are_in_its_folder(tmp_path: Path, context_of: Callable[..., LoadContext]) -> None:
    parts = {"_class_name": "StableDiffusionPipeline", "../evil": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(parts))

    assert "names a part '../evil'" in refused(
        context_of(folder_entry(tmp_path, "text-to-image", "diffusers"))
    )


def test_the_index_of_a_pipelines_part_names_only_files_of_its_folder(
    tmp_path: Path, context_of: Callable[..., LoadContext]
) -> None:
    (tmp_path / "unet").mkdir()
    index = {"metadata": {}, "weight_map": {"a": "../../evil.safetensors"}}
    name = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    (tmp_path / name).write_text(json.dumps(index))

    said = refused(context_of(folder_entry(tmp_path, "text-to-image", "diffusers")))

    assert f"its index {name} names '../../evil.safetensors', which is no file in its folder" in said


def test_no_module_reads_pickles() -> None:
    """``torch.load`` reads tensors only, and numpy reads no objects."""
    packages = [Path(__file__).parents[2] / name for name in ("backends", "tasks", "worker", "modelmill")]
    for file in (file for package in packages for file in package.rglob("*.py")):
        text = file.read_text()
        assert not re.search(
            r"^\s*(import|from) (c?[Pp]ickle|joblib|dill|shelve|marshal)\b", text, re.MULTILINE
        ), file
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text)), file
        assert all("allow_pickle=False" in call for call in re.findall(r"np\.load\([^\n]*", text)), file
