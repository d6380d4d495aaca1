"""The child state: the parent reads what the child wrote last, even if it died while it wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelmill_worker.child_state import LoadDeaths, Phase, Recorder


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    made = Recorder(tmp_path)
    made.start_file()
    return made


def test_the_parent_sees_what_the_child_is_doing(recorder: Recorder, tmp_path: Path) -> None:
    parent = Recorder(tmp_path)
    recorder.note_loading("m")
    state = parent.read()
    assert state is not None
    assert (state.phase, state.model) == (Phase.LOADING, "m")
    recorder.note_claim("f1")
    recorder.note_forward("m", (("job", "f1", 2),))
    state = parent.read()
    assert state is not None
    assert (state.phase, state.fences, state.forward) == (Phase.FORWARD, ("f1",), (("job", "f1", 2),))
    assert 0 <= state.age_s < 5


def test_a_claim_while_in_forward_is_still_in_forward(recorder: Recorder) -> None:
    recorder.note_forward("m", (("job", "f1", 0),))
    before = recorder.read()
    recorder.note_claim("f2")
    after = recorder.read()
    assert before is not None
    assert after is not None
    assert (after.phase, after.forward, after.since) == (before.phase, before.forward, before.since)
    assert after.fences == ("f2",)


def test_settled_claims_are_forgotten(recorder: Recorder) -> None:
    recorder.note_claim("f1")
    recorder.note_claim("f2")
    recorder.note_settled("f1")
    recorder.note_draining("m")
    state = recorder.read()
    assert state is not None
    assert state.fences == ("f2",)
    recorder.note_idle()
    state = recorder.read()
    assert state is not None
    assert state.fences == ()


def test_the_claims_of_held_results_outlive_their_run(recorder: Recorder) -> None:
    recorder.note_claim("f1")
    recorder.note_claim("f2")
    recorder.note_held(["f1"])
    recorder.note_idle()
    state = recorder.read()
    assert state is not None
    assert state.fences == ("f1",)
    recorder.note_held([])
    recorder.note_settled("f1")
    recorder.note_draining("m")
    state = recorder.read()
    assert state is not None
    assert state.fences == ()


def test_the_parent_sees_since_when_the_oldest_call_of_the_blob_store_lasts(recorder: Recorder) -> None:
    def seen() -> float:
        state = recorder.read()
        assert state is not None
        return state.storing_since

    with recorder.storing():
        first = seen()
        thread = threading.Thread(target=lambda: store_and_look(recorder, during))
        during: list[float] = []
        thread.start()
        thread.join()
        recorder.note_forward("m", ())
        assert seen() == first > 0
    assert during == [first]
    assert seen() == 0


def store_and_look(recorder: Recorder, during: list[float]) -> None:
    with recorder.storing():
        state = recorder.read()
        assert state is not None
        during.append(state.storing_since)


def test_a_new_child_keeps_its_predecessors_last_state_for_the_parent(
    recorder: Recorder, tmp_path: Path
) -> None:
    another = (
        "import sys; from pathlib import Path; from modelmill_worker.child_state import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1])); recorder.start_file(); recorder.note_claim('f1')\n"
    )
    subprocess.run([sys.executable, "-c", another, str(tmp_path)], check=True)
    Recorder(tmp_path).start_file()
    dead = recorder.take_dead()
    assert [state.fences for state in dead if state.pid != os.getpid()] == [("f1",)]
    assert recorder.take_dead() == []


@pytest.mark.parametrize("torn", [1, 2])
def test_a_state_that_was_not_finished_leaves_the_one_before(
    recorder: Recorder, tmp_path: Path, torn: int
) -> None:
    """States go to two places in turn. The last state of this child is torn after its first bytes."""
    for _ in range(torn):
        recorder.note_draining("before")
    recorder.note_loading("last")
    with (tmp_path / "child").open("r+b") as file:
        text = file.read()
        file.seek(text.index(b'"last"') + 1)
        file.write(b"\0\0")
    state = recorder.read()
    assert state is not None
    assert (state.phase, state.model) == (Phase.DRAINING, "before")


def test_half_a_file_is_never_read(recorder: Recorder, tmp_path: Path) -> None:
    parent, done = Recorder(tmp_path), threading.Event()

    def write() -> None:
        for index in range(500):
            recorder.note_forward("m", tuple((f"job{n}", "fence", n) for n in range(index % 50)))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert parent.read() is not None
    thread.join()


def test_a_missing_or_broken_file_gives_no_state(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "absent")
    assert recorder.read() is None
    assert recorder.load_deaths() == {}
    (tmp_path / "child").write_text("{")
    assert Recorder(tmp_path).read() is None


def test_the_next_child_reads_load_deaths(recorder: Recorder) -> None:
    recorder.write_load_deaths({"m": LoadDeaths(3, 12.5)})
    assert recorder.load_deaths() == {"m": LoadDeaths(3, 12.5)}
