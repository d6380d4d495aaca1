from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.onnx import export
from modelmill_backends.onnx.export import open_exported
from modelmill_backends.shared.artifacts import fingerprint, made_once
from tests.support.models import CPU, OpenModel


def test_models_that_share_weights_share_the_export(open_model: OpenModel, settings: Settings) -> None:
    open_model("conse-lite0")
    open_model("efficientnet-lite0")

    assert len(list((settings.cache_dir / "onnx").glob("efficientnet-*/model.onnx"))) == 1


def test_an_export_is_not_made_twice(
    open_model: OpenModel, context_of: Callable[..., LoadContext], settings: Settings
) -> None:
    open_model("minilm")
    before = {file: file.stat().st_mtime_ns for file in settings.cache_dir.rglob("model.onnx")}

    LoadedModel(context_of("minilm")).load()

    assert before == {file: file.stat().st_mtime_ns for file in settings.cache_dir.rglob("model.onnx")}


def test_a_failed_make_leaves_nothing_that_could_be_taken_for_the_artifact(
    context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    entry = context_of("minilm").entry
    target = tmp_path / "cache" / "thing"

    def half(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"half of it")
        raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        made_once(entry, target, half)

    assert [file.name for file in target.parent.iterdir()] == ["thing.lock"]


def test_leftovers_of_a_killed_maker_are_removed(
    context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    left_over = tmp_path / ".thing-killed"
    left_over.mkdir()

    made_once(context_of("minilm").entry, tmp_path / "thing", lambda folder: (folder / "a").touch())

    assert not left_over.exists()
    assert (tmp_path / "thing" / "a").exists()


def test_of_two_makers_at_a_time_one_makes_and_the_other_waits(
    context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    entry = context_of("minilm").entry
    made: list[int] = []
    inside, go_on = threading.Event(), threading.Event()

    def make(folder: Path) -> None:
        made.append(1)
        inside.set()
        go_on.wait(10)

    threads = [threading.Thread(target=made_once, args=(entry, tmp_path / "thing", make)) for _ in range(2)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)

    assert made == [1]


def test_the_fingerprint_follows_the_source_and_the_parts(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    first = fingerprint(tmp_path, 1)
    assert fingerprint(tmp_path, 1) == first
    assert fingerprint(tmp_path, 2) != first
    file.write_bytes(b"12")
    assert fingerprint(tmp_path, 1) != first


def test_the_fingerprint_follows_what_a_link_points_to(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot" / "inner"
    blobs.mkdir()
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (blobs / name).write_bytes(b"1")
    link = folder / "weights"
    link.symlink_to(blobs / "a")
    first = fingerprint(tmp_path / "snapshot")

    link.unlink()
    link.symlink_to(blobs / "b")

    assert fingerprint(tmp_path / "snapshot") != first
    (tmp_path / "other-name").symlink_to(tmp_path / "snapshot")
    assert fingerprint(tmp_path / "other-name") == fingerprint(tmp_path / "snapshot")


def test_a_cache_that_cannot_be_written_says_which_setting_helps(
    context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    context = context_of("minilm")
    context = LoadContext(context.entry, CPU, context.catalogue, Settings(cache_dir=blocked))

    with pytest.raises(ModelmillError, match="MODELMILL_CACHE_DIR") as caught:
        LoadedModel(context).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED


def test_a_missing_module_of_the_export_names_the_extra(
    context_of: Callable[..., LoadContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "weights.pth"
    source.touch()
    # A maker from another package, which needs a module that is not installed.
    (tmp_path / "makers.py").write_text("def to_export(source):\n    import torch_of_mars\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(ModelmillError) as caught:
        open_exported(context_of("efficientnet-lite0"), source, "makers:to_export")

    assert "torch_of_mars, needed once to export the weights," in caught.value.message
    assert "pip install 'modelmill[export]'" in caught.value.message


def test_damaged_weights_give_the_reason_and_no_file(
    context_of: Callable[..., LoadContext], settings: Settings, tmp_path: Path
) -> None:
    source = tmp_path / "damaged.pth"
    source.write_bytes(b"not a state dict")

    with pytest.raises(ModelmillError, match="cannot be exported to ONNX: UnpicklingError") as caught:
        open_exported(
            context_of("efficientnet-lite0"), source, "modelmill_backends.onnx.efficientnet_lite:to_export"
        )

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert not list((settings.cache_dir / "onnx").glob("damaged-*/model.onnx"))


def test_a_pickle_with_code_is_not_run(context_of: Callable[..., LoadContext], tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    source = tmp_path / "evil.pth"
    code = (
        "import sys, torch\n"
        "class Evil:\n"
        "    def __reduce__(self):\n"
        "        return (open, (sys.argv[2], 'w'))\n"
        "torch.save({'x': Evil()}, sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, source, trap], check=True, timeout=60)

    with pytest.raises(ModelmillError):
        open_exported(
            context_of("efficientnet-lite0"), source, "modelmill_backends.onnx.efficientnet_lite:to_export"
        )

    assert not trap.exists()


def test_the_export_process_runs_no_file_of_the_working_directory(
    context_of: Callable[..., LoadContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong torch')")
    source = tmp_path / "damaged.pth"
    source.write_bytes(b"not a state dict")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelmillError, match="UnpicklingError"):
        open_exported(
            context_of("efficientnet-lite0"), source, "modelmill_backends.onnx.efficientnet_lite:to_export"
        )


def test_the_version_is_part_of_the_key(tmp_path: Path) -> None:
    assert fingerprint(tmp_path, export.EXPORT_VERSION) != fingerprint(tmp_path, export.EXPORT_VERSION + 1)
