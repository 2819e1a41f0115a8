"""Submitting, finding and reading runs; no worker is started here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs.runs_lab import HERE, Lab

from llmrec_core.errors import InputError, LLMRecError, NotFoundError, RunCancelledError, RunFailedError, SpecError
from llmrec_core.prompts import STARTERS
from llmrec_core.runs.folder import RunStatus
from llmrec_core.runs.store import RunStore
from llmrec_core.specs import DatasetRef, RunSpec
from llmrec_core.workspace import Workspace


def submit_many(root: Path, n: int, *key: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(HERE / "submit_many.py"), str(root), str(n), *key],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def end(lab: Lab, run_id: str, state: str, error: str | None = None) -> None:
    """Writes a terminal status as a worker would."""
    lab.folder(run_id).write_status(lab.store.get(run_id).status.ended(state, error))  # type: ignore[arg-type]
    with lab.store.queue.transaction() as transaction:
        transaction.end(run_id)


def test_a_submitted_run_is_queued_with_its_spec_and_a_concrete_version(lab: Lab) -> None:
    run_id = lab.store.submit(lab.spec("one"))
    assert re.fullmatch(r"\d{8}-\d{6}-[a-z2-9]{5}", run_id)
    run = lab.store.get(run_id)
    asked = lab.spec("one")
    prompt = asked.prompt.model_copy(update={"source": STARTERS[asked.prompt.template].source})
    pinned = {"dataset": DatasetRef(name="films", version=1), "prompt": prompt}
    assert run.spec == asked.model_copy(update=pinned), "version and template text are pinned when it is submitted"
    assert (run.status.state, run.status.live, run.problem) == ("queued", True, "")
    assert {p.name for p in run.folder.iterdir()} == {"spec.json", "status.json", "checkpoints", "artifacts"}
    assert lab.store.events(run_id) == []
    assert lab.store.log(run_id) == ""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_fifty_processes_with_one_request_key_make_one_run_on_a_fresh_workspace(lab: Lab) -> None:
    ids = submit_many(lab.workspace.root, 50, "click-7")
    assert len(ids) == 50
    assert len(set(ids)) == 1
    assert [run.run_id for run in lab.store.list()] == ids[:1]
    assert lab.store.submit(lab.spec("other"), request_key="click-7") == ids[0]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_twenty_processes_without_a_key_make_twenty_whole_runs(lab: Lab) -> None:
    ids = submit_many(lab.workspace.root, 20)
    assert len(set(ids)) == 20
    runs = lab.store.list()
    assert {run.run_id for run in runs} == set(ids)
    assert all(run.problem == "" for run in runs)
    assert len(lab.store.queue.live()) == 20


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_impossible_request_keys_are_refused(lab: Lab, key: str) -> None:
    with pytest.raises(InputError, match="1 to 200"):
        lab.store.submit(lab.spec("one"), request_key=key)
    assert lab.store.list() == []


def test_an_unknown_dataset_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = RunStore(Workspace.open(tmp_path))
    with pytest.raises(NotFoundError, match="no dataset 'nowhere'"):
        store.submit(RunSpec(dataset=DatasetRef(name="nowhere")))
    assert [p for p in store.workspace.runs.iterdir() if p.is_dir()] == []


def test_an_unknown_parent_is_refused(lab: Lab) -> None:
    with pytest.raises(NotFoundError):
        lab.submit(parent_run="20200101-000000-aaaaa")
    parent = lab.submit()
    with pytest.raises(InputError, match="queued, only a finished run"):
        lab.submit(kind="evaluate", parent_run=parent)


@pytest.mark.parametrize("run_id", ["../x", "a/b", "%252e/", "C:\\x", "\\\\host\\share", "a\0b", "nul", "", "x" * 65])
def test_hostile_run_ids_are_refused(lab: Lab, run_id: str) -> None:
    for use in (lab.store.get, lab.store.delete, lab.store.cancel, lab.store.resume, lab.store.events, lab.store.log):
        with pytest.raises(InputError):
            use(run_id)


def test_unknown_ids_links_and_plain_files_are_not_found(lab: Lab, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (lab.workspace.runs / "link").symlink_to(outside)
    lab.submit()
    for run_id in ("nosuch", "link", "runs.sqlite"):
        with pytest.raises(NotFoundError) as caught:
            lab.store.delete(run_id)
        assert caught.value.exit_code == 3
    assert outside.is_dir()
    assert len(lab.store.list()) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("spec.json", "{"),
        ("spec.json", None),
        ("spec.json", '{"dataset": {"name": "films"}, "sede": 1}'),
        ("spec.json", "[" * 5000),
        ("status.json", ""),
        ("status.json", '{"state": "sleeping"}'),
        ("status.json", "\xff"),
    ],
)
def test_a_damaged_run_shows_why_and_takes_nothing_down(lab: Lab, name: str, content: str | None) -> None:
    good, bad = lab.submit("good"), lab.submit("bad")
    path = lab.folder(bad).path / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    runs = {run.run_id: run for run in lab.store.list()}
    assert runs[good].problem == ""
    assert runs[bad].status.state == "failed"
    assert name in runs[bad].problem
    assert runs[bad].status.error
    with pytest.raises(RunFailedError):
        lab.store.result(bad)
    lab.store.delete(bad)
    assert [run.run_id for run in lab.store.list()] == [good]


def test_a_run_that_looks_done_without_a_manifest_has_no_result(lab: Lab) -> None:
    run_id = lab.submit()
    end(lab, run_id, "done")
    lab.folder(run_id).result_path.write_text("{}")
    with pytest.raises(RunFailedError, match="no manifest"):
        lab.store.result(run_id)


def test_results_of_runs_that_have_none_say_why(lab: Lab) -> None:
    queued, failed, cancelled = lab.submit(), lab.submit(), lab.submit()
    end(lab, failed, "failed", "ValueError: teapot")
    lab.store.cancel(cancelled)
    with pytest.raises(InputError, match="is queued"):
        lab.store.result(queued)
    with pytest.raises(RunFailedError, match="teapot"):
        lab.store.result(failed)
    with pytest.raises(RunCancelledError) as caught:
        lab.store.result(cancelled)
    assert caught.value.exit_code == 130


def test_cancelling_in_the_queue_ends_it_at_once_and_twice_does_no_harm(lab: Lab) -> None:
    run_id = lab.submit()
    assert lab.store.cancel(run_id).state == "cancelled"
    assert lab.store.cancel(run_id).state == "cancelled"
    assert lab.store.queue.live() == []
    done = lab.submit()
    end(lab, done, "done")
    with pytest.raises(InputError, match="done already"):
        lab.store.cancel(done)


def test_only_running_runs_can_be_stopped(lab: Lab) -> None:
    run_id = lab.submit()
    with pytest.raises(InputError, match="Cancel it instead"):
        lab.store.stop(run_id)
    end(lab, run_id, "failed")
    with pytest.raises(InputError, match="failed, not running"):
        lab.store.stop(run_id)


def test_the_list_is_newest_first_and_the_queue_oldest_first(lab: Lab) -> None:
    ids = [lab.submit() for _ in range(3)]
    assert [run.run_id for run in lab.store.list()] == ids[::-1]
    assert [row.run_id for row in lab.store.queue.live()] == ids
    end(lab, ids[1], "failed")
    assert [run.run_id for run in lab.store.active()] == [ids[2], ids[0]]


def test_resuming_goes_on_from_the_nearest_ancestor_with_a_checkpoint(lab: Lab) -> None:
    first = lab.submit("steps 1", seed=3)
    with pytest.raises(InputError, match="queued"):
        lab.store.resume(first)
    end(lab, first, "interrupted")
    assert lab.store.resume_point(first) is None
    for step, content in ((5, "x"), (20, "x"), (100, None)):
        folder = lab.folder(first).checkpoints / f"checkpoint-{step}"
        folder.mkdir()
        if content:
            (folder / "model.safetensors").write_text(content)
    (lab.folder(first).checkpoints / "tmp-checkpoint-300").mkdir()
    # The newest one with something in it, by number and not by letters.
    assert lab.store.resume_point(first) == lab.folder(first).checkpoints / "checkpoint-20"

    second = lab.store.resume(first)
    assert lab.store.resume(first) == second
    spec = lab.store.get(second).spec
    assert spec.parent_run == first
    assert spec.seed == 3
    with pytest.raises(InputError, match=f"{second} goes on from"):
        lab.store.delete(first)
    end(lab, second, "failed")
    third = lab.store.resume(second)
    assert third not in (first, second)
    assert lab.store.resume_point(third) == lab.folder(first).checkpoints / "checkpoint-20"
    end(lab, third, "cancelled")
    lab.store.delete(first)
    assert lab.store.resume_point(third) is None


def test_done_and_damaged_runs_are_not_resumed(lab: Lab) -> None:
    done, damaged = lab.submit(), lab.submit()
    end(lab, done, "done")
    with pytest.raises(InputError, match="is done"):
        lab.store.resume(done)
    end(lab, damaged, "failed")
    lab.folder(damaged).spec_path.write_text("{}")
    with pytest.raises(SpecError, match="dataset"):
        lab.store.resume(damaged)


def test_a_parent_that_points_to_itself_or_outside_ends_the_search(lab: Lab) -> None:
    run_id = lab.submit()
    folder = lab.folder(run_id)
    for parent in (run_id, "../../etc", "gone"):
        raw = {**json.loads(folder.spec_path.read_text()), "parent_run": parent}
        folder.spec_path.write_text(json.dumps(raw))
        assert lab.store.resume_point(run_id) is None


def test_a_lost_index_is_made_again_from_the_folders(lab: Lab) -> None:
    ids = [lab.store.submit(lab.spec("nothing"), request_key=f"k{i}") for i in range(3)]
    end(lab, ids[0], "failed")
    for path in lab.workspace.runs.glob("runs.sqlite*"):
        path.unlink()
    lab.supervisor.reconcile()
    assert [row.run_id for row in lab.store.queue.live()] == ids[1:]
    assert lab.store.submit(lab.spec("nothing"), request_key="k0") == ids[0]
    assert lab.store.submit(lab.spec("nothing"), request_key="k2") == ids[2]


def test_an_orphan_of_a_crashed_submission_does_not_become_a_twin(lab: Lab) -> None:
    known = lab.store.submit(lab.spec("nothing"), request_key="k")
    orphan = lab.workspace.runs / "20200101-000000-aaaaa"
    shutil.copytree(lab.folder(known).path, orphan)
    half = lab.workspace.runs / ".new-20200101-000000-bbbbb"
    half.mkdir()
    lab.supervisor.reconcile()
    assert lab.store.get(orphan.name).status.state == "cancelled"
    assert [row.run_id for row in lab.store.queue.live()] == [known]
    assert not half.exists()


def test_a_damaged_index_says_what_to_do(lab: Lab) -> None:
    lab.submit()
    for path in lab.workspace.runs.glob("runs.sqlite-*"):
        path.unlink()
    (lab.workspace.runs / "runs.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(LLMRecError, match="delete it: the runs are found again"):
        lab.submit()
    (run,) = lab.store.list()
    (lab.workspace.runs / "runs.sqlite").unlink()
    lab.supervisor.reconcile()
    assert [row.run_id for row in lab.store.queue.live()] == [run.run_id]


def test_a_full_disk_queues_nothing_and_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, status: RunStatus, durable: bool = True) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmrec_core.runs.folder.RunFolder.write_status", full)
    with pytest.raises(LLMRecError, match="No space left on device"):
        lab.submit()
    assert [p.name for p in lab.workspace.runs.iterdir() if p.is_dir()] == []
    assert lab.store.queue.live() == []


def test_the_log_shows_its_end(lab: Lab) -> None:
    run_id = lab.submit()
    lab.folder(run_id).log_path.write_bytes(b"\xff first\n" + b"".join(b"line %d\n" % i for i in range(100_000)))
    assert lab.store.log(run_id, 2) == "line 99998\nline 99999"
    assert lab.store.log(run_id, 0) == ""
