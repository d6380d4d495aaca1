"""The folders of users without a home folder, with one that cannot be written, and without /tmp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modelmill.errors import ConfigError
from modelmill.folders import default_cache_dir, default_data_dir, home, keep_weights_beside, make_folder
from modelmill.settings import Settings

NAMELESS = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
READING = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
"""Lets another user read the interpreter of the tests, wherever it is."""
needs_root = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user"
)


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def as_nameless(code: str, **environment: str) -> str:
    """The output of code that runs as a user without a name and without HOME."""
    left_out = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    command = [*NAMELESS, *READING, sys.executable, "-c", code]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, cwd="/")
    return done.stdout + done.stderr


def test_a_home_that_cannot_be_written_moves_the_cache_and_not_the_data(
    own_tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HOME", str(file / "home"))

    settings = Settings()

    assert settings.cache_dir == own_tmp / f"modelmill-cache-{os.getuid()}"
    assert settings.cache_dir.stat().st_mode & 0o777 == 0o700
    assert settings.data_dir == file / "home" / ".local/share/modelmill"
    with pytest.raises(ConfigError, match=r"^The folder .*file/home.* cannot be written: Not a directory. "):
        make_folder(settings.needed_data_dir, "MODELMILL_DATA_DIR")


@pytest.mark.parametrize("foreign", ["a link", "open to others", "a file"])
def test_a_cache_that_others_can_write_is_not_used(
    foreign: str, own_tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HOME", str(file))
    trap = own_tmp / f"modelmill-cache-{os.getuid()}"
    if foreign == "a link":
        trap.symlink_to(tmp_path)
    elif foreign == "a file":
        trap.touch()
    else:
        trap.mkdir()
        trap.chmod(0o777)

    assert default_cache_dir() == file / ".cache" / "modelmill"


def test_a_folder_of_xdg_counts_without_a_home(
    own_tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/cache\n")
    monkeypatch.setenv("XDG_DATA_HOME", f"{tmp_path}/data")

    assert default_cache_dir() == tmp_path / "cache" / "modelmill"
    assert default_data_dir() == tmp_path / "data" / "modelmill"


def test_a_home_that_is_no_absolute_path_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = home()
    for text in ("", " ", ".", "relative/home"):
        monkeypatch.setenv("HOME", text)
        assert home() not in (Path(text), Path("/")), text
    monkeypatch.setenv("HOME", f" {usual}\n")
    assert home() == usual


def test_downloads_go_to_the_cache_only_if_the_home_cannot_hold_them(
    own_tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_weights_beside(own_tmp)
    assert "HF_HOME" not in os.environ

    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    keep_weights_beside(own_tmp)
    assert os.environ["HF_HOME"] == str(own_tmp / "huggingface")
    monkeypatch.delenv("HF_HOME")


@needs_root
def test_a_user_without_a_name_or_a_home_has_settings() -> None:
    code = (
        "from modelmill.settings import Settings\n"
        "settings = Settings.from_env()\n"
        "print(settings.data_dir, settings.cache_dir)\n"
        "settings.needed_data_dir"
    )

    said = as_nameless(code)

    assert f"None {tempfile.gettempdir()}/modelmill-cache-54321" in said
    assert "This user has no home folder to keep jobs in. Name a folder with --data-dir or" in said
    assert "begins with ~, but this user has no home folder" in as_nameless(code, MODELMILL_CACHE_DIR="~/x")


def test_no_folder_for_temporary_files_is_told(tmp_path: Path) -> None:
    code = "from modelmill.folders import ensure_temporary_folder as e\ne()"

    done = subprocess.run(
        # No file can grow beyond 0 bytes, so none of the usual folders can be written.
        ["sh", "-c", 'ulimit -f 0; "$0" -c "$1" 2>&1 | cat', sys.executable, code],
        capture_output=True,
        text=True,
    )

    last = done.stdout.splitlines()[-1]
    assert last.endswith(
        "No folder for temporary files can be written. Set TMPDIR to a folder that this user may write."
    )


@needs_root
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a folder that is not below /tmp")
def test_another_folder_is_taken_if_tmp_cannot_be_written() -> None:
    code = (
        "import os, tempfile\n"
        "from pathlib import Path\n"
        "from modelmill.folders import ensure_temporary_folder\n"
        "ensure_temporary_folder(Path('/dev/shm/modelmill-test-cache'))\n"
        "print(tempfile.mkdtemp(), os.environ['TMPDIR'])"
    )
    script = (
        "for d in /tmp /var/tmp; do mount --bind $d $d && mount -o remount,ro,bind $d || exit 9; done\n"
        'cd /proc && exec "$@"'
    )
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-B", "-c", code]

    try:
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        shutil.rmtree("/dev/shm/modelmill-test-cache", ignore_errors=True)
    if done.returncode in (1, 9) and "Operation not permitted" in done.stderr:
        pytest.skip("this machine gives no name space for mounts")

    made, named = done.stdout.split()
    assert made.startswith("/dev/shm/modelmill-test-cache/tmp/")
    assert named == "/dev/shm/modelmill-test-cache/tmp"
