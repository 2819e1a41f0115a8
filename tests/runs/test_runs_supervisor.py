"""The queue keeps moving, whoever dies. Workers and apps here are real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from runs.runs_lab import HERE, IMPATIENT, Lab, fake_argv

from llmrec_core.errors import InputError, LLMRecError, NotFoundError
from llmrec_core.runs import (
    RunStore,
    Supervisor,
    cancel_run,
    detach,
    processes,
    reconcile,
    run_foreground,
    supervisor_for,
)
from llmrec_core.runs.supervisor import same_device, serve
from llmrec_core.workspace import Workspace

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@contextlib.contextmanager
def app(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """An app in a process of its own, killed at the end."""
    child = subprocess.Popen([sys.executable, str(HERE / "fake_app.py"), str(lab.workspace.root)])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def working(lab: Lab, run_id: str) -> bool:
    return lab.store.get(run_id).status.state == "running" and len(lab.store.events(run_id)) > 1


def claimed_by(lab: Lab, process: processes.ProcessId, owner: processes.ProcessId | None) -> str:
    """A run that the index and its status say is worked on by that process."""
    run_id = lab.submit("steps 60")
    with lab.store.queue.transaction() as transaction:
        transaction.claim(run_id, process, owner)
    lab.folder(run_id).write_status(
        lab.store.get(run_id).status.model_copy(
            update={
                "state": "running",
                "pid": process.pid,
                "pid_started_at": process.started_at,
                "boot": process.boot,
            }
        )
    )
    return run_id


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


@posix
def test_a_run_outlives_the_killed_app_and_is_found_by_the_next(lab: Lab) -> None:
    run_id = lab.submit("steps 60")
    with app(lab) as first:
        lab.until(lambda: working(lab, run_id), tick=False)
        worker = lab.worker(run_id)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert processes.is_alive(worker)

    # The next app leaves it running, starts no twin, and gives the device to nobody else.
    waiting = lab.submit("nothing")
    seen = len(lab.store.events(run_id))
    lab.supervisor.start()
    lab.until(lambda: len(lab.store.events(run_id)) > seen + 5, tick=False)
    assert lab.worker(run_id) == worker
    assert [row.state for row in lab.store.queue.live()] == ["claimed", "queued"]

    lab.store.stop(run_id)
    lab.until(lambda: lab.store.get(waiting).status.state == "done", tick=False)
    assert lab.store.get(run_id).status.state == "done"


@posix
def test_app_and_worker_killed_together_leave_an_interrupted_run_that_resumes(lab: Lab) -> None:
    run_id = lab.submit("steps 60")
    with app(lab) as first:
        lab.until(lambda: working(lab, run_id), tick=False)
        first.send_signal(signal.SIGKILL)
        first.wait()
    worker = lab.worker(run_id)
    assert processes.kill(worker)
    lab.until(lambda: not processes.is_alive(worker), tick=False)
    reconcile(lab.workspace)
    status = lab.store.get(run_id).status
    assert status.state == "interrupted"
    assert status.error is not None
    assert "gone without a word" in status.error
    assert lab.store.queue.live() == []

    again = lab.store.resume(run_id)
    lab.until(lambda: working(lab, again))
    lab.store.stop(again)
    assert lab.finish(again).state == "done"
    assert "going on from the checkpoints" in lab.store.events(again)[0]["message"]


@posix
def test_two_apps_start_each_run_once_and_one_at_a_time(lab: Lab) -> None:
    ids = [lab.submit("steps 0.1") for _ in range(4)]
    lab.supervisor.start()
    with app(lab), app(lab):
        lab.until(lambda: all(not r.status.live for r in lab.store.list()), tick=False, limit_s=30)
    spans = []
    for run_id in ids:
        run = lab.store.get(run_id)
        assert run.status.state == "done", run.status.error
        assert [e["type"] for e in lab.store.events(run_id)].count("result") == 1
        assert run.status.started_at is not None
        assert run.status.ended_at is not None
        spans.append((run.status.started_at, run.status.ended_at))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@posix
def test_a_stranger_with_the_workers_pid_is_neither_trusted_nor_signalled(
    lab: Lab, stranger: subprocess.Popen[bytes]
) -> None:
    found = processes.identify(stranger.pid)
    assert found is not None
    run_id = claimed_by(lab, replace(found, started_at=found.started_at - 50.0), owner=None)
    lab.store.cancel(run_id)
    lab.supervisor.tick()
    assert lab.store.get(run_id).status.state == "cancelled"
    other = claimed_by(lab, replace(found, boot="before the restart"), owner=None)
    lab.supervisor.reconcile()
    assert lab.store.get(other).status.state == "interrupted"
    assert stranger.poll() is None


@posix
def test_a_dead_worker_is_left_to_its_living_parent_for_a_while(lab: Lab, stranger: subprocess.Popen[bytes]) -> None:
    owner = processes.identify(stranger.pid)
    assert owner is not None
    dead = replace(processes.current(), started_at=1.0)
    run_id = claimed_by(lab, dead, owner)
    lab.supervisor.tick()
    assert lab.store.get(run_id).status.state == "running"
    began = time.monotonic()
    lab.until(lambda: lab.store.get(run_id).status.state == "interrupted")
    assert time.monotonic() - began > IMPATIENT.settle_after_s * 0.8
    orphan = claimed_by(lab, dead, replace(owner, started_at=1.0))
    lab.supervisor.tick()
    assert lab.store.get(orphan).status.state == "interrupted"


@posix
def test_a_clock_a_day_off_stalls_nobody_and_silence_is_noticed(lab: Lab) -> None:
    run_id = lab.started("deaf 60")
    folder = lab.folder(run_id)
    for day in (-86_400, 86_400):
        folder.write_status(folder.read_status().model_copy(update={"heartbeat_at": time.time() + day}))
        lab.supervisor.tick()
        assert lab.supervisor.stalled() == []
    worker = lab.worker(run_id)
    os.kill(worker.pid, signal.SIGSTOP)
    lab.until(lambda: lab.supervisor.stalled() == [run_id])
    assert lab.supervisor.silent_s(run_id) > IMPATIENT.stalled_after_s
    assert lab.store.get(run_id).status.state == "running"
    os.kill(worker.pid, signal.SIGCONT)
    lab.until(lambda: lab.supervisor.stalled() == [])


@posix
def test_a_worker_that_does_not_go_after_its_last_word_is_ended(lab: Lab) -> None:
    began = time.monotonic()
    run = lab.run("linger 60")
    assert run.status.state == "done"
    assert time.monotonic() - began < 10
    assert not processes.is_alive(lab.worker(run.run_id))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cpu", "cpu", True),
        ("cuda", "cuda:0", True),
        ("cuda:0", "cuda:1", False),
        ("cpu", "cuda", False),
        ("auto", "cuda:3", True),
        ("auto", "auto", True),
        ("mps", "cpu", False),
    ],
)
def test_which_devices_meet(one: str, other: str, same: bool) -> None:
    assert same_device(one, other) is same
    assert same_device(other, one) is same


def test_devices_work_side_by_side_and_nobody_is_overtaken(lab: Lab) -> None:
    first = lab.started("device 60", device="auto")
    lab.until(lambda: lab.store.get(first).status.device == "cuda:0")
    # "auto" turned out to be a GPU, so the processor is free; the second "auto" waits and holds back what is younger.
    beside = lab.submit("steps 60", device="cpu")
    lab.until(lambda: working(lab, beside))
    waiting = lab.submit("nothing", device="auto")
    younger = lab.submit("nothing", device="cuda:1")
    for _ in range(5):
        lab.supervisor.tick()
    assert {row.run_id: row.state for row in lab.store.queue.live()} == {
        first: "claimed",
        beside: "claimed",
        waiting: "queued",
        younger: "queued",
    }
    for run_id in (first, beside):
        lab.store.cancel(run_id)
    lab.until(lambda: lab.store.get(younger).status.state == "done")
    ended, began = lab.store.get(waiting).status.ended_at, lab.store.get(younger).status.started_at
    assert ended is not None
    assert began is not None
    assert ended < began


def test_the_foreground_waits_its_turn_and_says_for_whom(lab: Lab) -> None:
    first, second = lab.submit("steps 0.3"), lab.submit("nothing")
    events: list[dict[str, Any]] = []
    status = lab.finish(second, events.append)
    assert status.state == "done"
    assert lab.store.get(first).status.state == "done"
    assert events[0]["message"] == f"waiting for run {first} on device auto"
    assert events[0]["n"] == 0
    assert [e["n"] for e in events[1:]] == list(range(1, len(events)))
    assert events[-1]["type"] == "result"
    with pytest.raises(NotFoundError):
        lab.finish("nosuch")


def test_the_foreground_follows_its_run_even_when_the_index_cannot_be_opened(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: the worker's own last word is enough."""
    run_id = lab.started("steps 0.3")
    worker = lab.worker(run_id)

    def broken(start: bool = True) -> bool:
        raise LLMRecError("the list of runs cannot be used: disk I/O error.")

    monkeypatch.setattr(lab.supervisor, "tick", broken)
    monkeypatch.setattr(lab.supervisor, "reconcile", lambda: None)
    events: list[dict[str, Any]] = []
    assert lab.finish(run_id, events.append).state == "done"
    assert events[-1]["type"] == "result"
    lab.until(lambda: not processes.is_alive(worker), tick=False)
    with pytest.raises(LLMRecError, match="disk I/O"):
        lab.finish(lab.submit("nothing"))
    monkeypatch.undo()


def test_ctrl_c_in_the_foreground_cancels_and_a_second_one_does_not_wait(lab: Lab) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["type"] == "train":
            raise KeyboardInterrupt

    assert lab.finish(lab.submit("steps 60"), interrupt).state == "cancelled"

    patient = Supervisor(lab.workspace, fake_argv, replace(IMPATIENT, term_after_s=60.0, kill_after_s=60.0))
    run_id = lab.submit("deaf 60")
    presses = 0

    def twice(event: dict[str, Any]) -> None:
        nonlocal presses
        presses += 1
        raise KeyboardInterrupt

    lab.until(lambda: lab.store.events(run_id))
    # The first press asks, in vain; the second comes with the next event.
    lab.folder(run_id).set_wish("cancel")
    assert run_foreground(lab.workspace, run_id, twice, patient).state == "cancelled"
    assert presses == 1


def test_cancelling_can_be_waited_for_without_an_app(lab: Lab) -> None:
    run_id = lab.started("deaf 60")
    lab.submit("nothing")
    assert cancel_run(lab.workspace, run_id, lab.supervisor).state == "cancelled"
    # Waiting for the end of one run starts no other.
    assert [row.state for row in lab.store.queue.live()] == ["queued"]


def test_a_run_cannot_be_deleted_while_it_runs(lab: Lab) -> None:
    run_id = lab.started("steps 60")
    with pytest.raises(InputError, match="is running"):
        lab.store.delete(run_id)
    assert lab.store.get(run_id).status.state == "running"
    cancel_run(lab.workspace, run_id, lab.supervisor)
    lab.store.delete(run_id)
    assert lab.store.list() == []
    assert [p.name for p in lab.workspace.runs.iterdir() if p.is_dir()] == []
    queued = lab.submit("nothing")
    lab.store.delete(queued)
    assert lab.store.queue.live() == []


def test_what_cannot_start_fails_and_the_next_one_runs(lab: Lab) -> None:
    broken, removed, good = lab.submit("nothing"), lab.submit("nothing"), lab.submit("nothing")
    spec = json.loads(lab.folder(broken).spec_path.read_text())
    lab.folder(broken).spec_path.write_text(json.dumps({**spec, "seed": "many"}))
    lab.folder(removed).path.rename(lab.workspace.root / "elsewhere")
    assert lab.finish(good).state == "done"
    status = lab.store.get(broken).status
    assert (status.state, status.exit_code) == ("failed", 2)
    assert status.error is not None
    assert "seed" in status.error

    nothing = Supervisor(lab.workspace, lambda folder: [str(folder / "no such program")], IMPATIENT)
    lost = lab.submit("nothing")
    nothing.tick()
    status = lab.store.get(lost).status
    assert status.state == "failed"
    assert status.error is not None
    assert "could not be started" in status.error


def test_the_thread_starts_once_serves_and_survives_faults(lab: Lab) -> None:
    lab.supervisor.start()
    thread = lab.supervisor._thread
    lab.supervisor.start()
    assert lab.supervisor._thread is thread
    assert lab.supervisor.running
    index = lab.workspace.runs / "runs.sqlite"
    lab.until(index.exists, tick=False)
    lab.supervisor.stop()
    assert not lab.supervisor.running
    index.unlink()
    index.write_bytes(b"not a database" * 100)
    lab.supervisor.start()
    lab.until(lambda: lab.supervisor.last_error, tick=False)
    assert lab.supervisor.last_error is not None
    assert "cannot be used" in lab.supervisor.last_error
    index.unlink()
    lab.until(lambda: lab.supervisor.last_error is None, tick=False)
    run_id = lab.submit("nothing")
    lab.until(lambda: lab.store.get(run_id).status.state == "done", tick=False)


def test_one_supervisor_a_process_and_workspace(tmp_path: Path) -> None:
    one, other = Workspace.open(tmp_path / "a"), Workspace.open(tmp_path / "b")
    assert supervisor_for(one) is supervisor_for(Workspace.open(tmp_path / "b" / ".." / "a"))
    assert supervisor_for(one) is not supervisor_for(other)


def test_serving_until_idle_ends_when_all_is_done(lab: Lab) -> None:
    ids = [lab.submit("nothing"), lab.submit("fail")]
    serve(lab.workspace, until_idle=True, supervisor=lab.supervisor)
    assert [lab.store.get(r).status.state for r in ids] == ["done", "failed"]


def test_a_detached_supervisor_serves_the_queue_in_a_session_of_its_own(lab: Lab) -> None:
    """With the real worker; the spec is damaged, so that it ends before anything heavy is loaded."""
    run_id = lab.submit("nothing")
    lab.folder(run_id).spec_path.write_text("{}")
    pid = detach(lab.workspace)
    if hasattr(os, "getsid"):
        assert os.getsid(pid) == pid
    lab.until(lambda: lab.store.queue.live() == [], tick=False)
    assert lab.folder(run_id).read_status().state == "failed"
    lab.until(lambda: processes.identify(pid) is None, tick=False)
    assert (lab.workspace.runs / "supervisor.log").read_text() == ""
    assert RunStore(lab.workspace).list()[0].run_id == run_id
