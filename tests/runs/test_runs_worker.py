"""What a worker leaves behind, however it ends. Every run here is a real process."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs.runs_lab import Lab, fake_argv

from llmrec_core.errors import RunCancelledError, RunFailedError
from llmrec_core.runs import processes
from llmrec_core.runs.folder import RunFolder
from llmrec_core.runs.handle import RunHandle
from llmrec_core.runs.manifest import changed_files
from llmrec_core.runs.worker import EXIT_NOT_MINE, reason


def test_a_run_ends_with_result_and_manifest(lab: Lab) -> None:
    run = lab.run("steps 0.4", seed=5)
    assert run.status.state == "done", run.status.error
    assert run.status.ended_at is not None
    assert (run.status.stage, run.status.error) == ("training", None)

    result = lab.store.result(run.run_id)
    assert (result["run_id"], result["state"], result["answer"], result["loss"]) == (run.run_id, "done", 42, None)
    assert 0.3 < result["elapsed_s"] < 10

    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["spec_hash"] == run.spec.spec_hash()
    assert manifest["dataset"]["fingerprint"] == "f" * 64
    assert manifest["seed"] == 5
    assert set(manifest["files"]) == {"weights.bin", "result.json"}
    weights = (run.folder / "artifacts" / "weights.bin").read_bytes()
    assert manifest["files"]["weights.bin"] == {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "size_bytes": len(weights),
    }
    assert {"torch", "transformers", "llmrec-studio"} <= set(manifest["versions"])

    # Nothing but the status may be younger than the manifest.
    written = (run.folder / "manifest.json").stat().st_mtime_ns
    younger = {p.name for p in run.folder.rglob("*") if p.is_file() and p.stat().st_mtime_ns > written}
    assert younger == {"status.json"}
    assert not (run.folder / ".ballast").exists()

    types = [event["type"] for event in lab.store.events(run.run_id)]
    assert types[0] == "stage"
    assert types[-1] == "result"
    assert types.count("result") == 1

    assert changed_files(manifest, run.folder / "artifacts") == []
    (run.folder / "artifacts" / "weights.bin").write_bytes(weights[:-1])
    assert changed_files(manifest, run.folder / "artifacts") == ["weights.bin"]


def test_the_manifest_comes_after_all_else_and_before_done(lab: Lab) -> None:
    """Watches the folder while the run ends: done is never seen without a manifest, nor a manifest without a result."""
    run_id = lab.submit("nothing")
    folder, faults, seen = lab.folder(run_id), [], threading.Event()

    def watch() -> None:
        while not seen.is_set():
            done = folder.load().status.state == "done"
            manifest = folder.manifest_path.exists()
            if (done and not manifest) or (manifest and not folder.result_path.exists()):
                faults.append((done, manifest))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = lab.finish(run_id)
    seen.set()
    watcher.join()
    assert status.state == "done"
    assert faults == []


@pytest.mark.parametrize(
    ("job", "kind", "exit_code", "words"),
    [
        ("fail", "ValueError", 1, "ValueError: the loss is a teapot"),
        ("refuse", "DataError", 2, "split: no interaction is left. Lower the k-core."),
        ("disk_full", "OSError", 1, "the disk is full (OSError: [Errno 28] No space left on device: "),
        ("vanish", "WorkerExit", 1, "exit code 9 before the run was done: the driver went away"),
    ],
)
def test_a_failed_run_says_why(lab: Lab, job: str, kind: str, exit_code: int, words: str) -> None:
    run = lab.run(job)
    assert run.status.state == "failed"
    assert (run.status.error_kind, run.status.exit_code) == (kind, exit_code)
    assert run.status.error is not None
    assert words in run.status.error
    assert not (run.folder / "manifest.json").exists()
    with pytest.raises(RunFailedError):
        lab.store.result(run.run_id)
    if job == "fail":
        assert "Traceback" in lab.store.log(run.run_id)


def test_reasons_in_words() -> None:
    elsewhere = RuntimeError("I/O error: No space left on device (os error 28)")
    assert reason(elsewhere).startswith("the disk is full")
    outer = ValueError("could not save")
    outer.__cause__ = OSError(28, "No space left on device")
    assert reason(outer).startswith("the disk is full")
    assert reason(MemoryError()).startswith("out of memory (MemoryError). ")
    device = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
    assert "out of device memory" in reason(device)
    assert reason(OSError(2, "No such file")) == "FileNotFoundError: [Errno 2] No such file"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_worker_is_explained_and_its_children_end(lab: Lab) -> None:
    run = lab.run("orphan 60")
    assert run.status.state == "failed"
    assert run.status.error is not None
    assert run.status.error.startswith("killed by SIGKILL (often: out of memory)")
    child = int((run.folder / "child.pid").read_text())
    lab.until(lambda: processes.identify(child) is None)


def test_cancelling_a_running_run_ends_it_at_its_next_step(lab: Lab) -> None:
    run_id = lab.started("steps 60")
    worker = lab.worker(run_id)
    lab.store.cancel(run_id)
    status = lab.finish(run_id)
    assert (status.state, status.exit_code) == ("cancelled", 130)
    assert not processes.is_alive(worker)
    with pytest.raises(RunCancelledError):
        lab.store.result(run_id)
    assert lab.store.resume_point(run_id) is not None


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("job", ["deaf 60", "stone_deaf 60"])
def test_cancelling_reaches_one_that_does_not_listen(lab: Lab, job: str) -> None:
    """As in the middle of a long save: TERM first, then KILL of the whole group."""
    run_id = lab.started(job)
    worker = lab.worker(run_id)
    if job.startswith("stone"):
        lab.until((lab.folder(run_id).path / "child.pid").exists)
    else:
        # So that TERM alone has to do.
        lab.supervisor.timing = replace(lab.supervisor.timing, kill_after_s=60.0)
    began = time.monotonic()
    lab.store.cancel(run_id)
    status = lab.finish(run_id)
    assert status.state == "cancelled"
    assert time.monotonic() - began < 5
    assert not lab.folder(run_id).ballast_path.exists()
    assert not processes.is_alive(worker)
    assert not lab.folder(run_id).manifest_path.exists()
    if job.startswith("stone"):
        child = int((lab.folder(run_id).path / "child.pid").read_text())
        lab.until(lambda: processes.identify(child) is None)


def test_a_cancellation_counts_until_the_manifest(lab: Lab) -> None:
    """The job never looks and comes to its end, yet the run is not done."""
    lab.supervisor.timing = replace(lab.supervisor.timing, term_after_s=60.0)
    run_id = lab.started("deaf 0.5")
    lab.store.cancel(run_id)
    assert lab.finish(run_id).state == "cancelled"
    assert lab.folder(run_id).result_path.exists()
    assert not lab.folder(run_id).manifest_path.exists()
    with pytest.raises(RunCancelledError):
        lab.store.result(run_id)


def test_stop_and_keep_ends_early_and_is_done(lab: Lab) -> None:
    run_id = lab.started("steps 60")
    lab.store.stop(run_id)
    assert lab.finish(run_id).state == "done"
    assert lab.store.result(run_id)["answer"] == 42
    assert lab.store.events(run_id)[-2]["message"] == "stopped and kept"


def test_a_cancellation_is_not_softened_to_a_stop(lab: Lab) -> None:
    run_id = lab.started("steps 60")
    lab.store.stop(run_id)
    lab.store.cancel(run_id)
    lab.folder(run_id).set_wish("stop")
    assert lab.folder(run_id).wish() == "cancel"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_worker_told_to_end_by_the_system_is_interrupted(lab: Lab) -> None:
    run_id = lab.started("deaf 60")
    processes.terminate(lab.worker(run_id))
    status = lab.finish(run_id)
    assert status.state == "interrupted"
    assert status.error is not None
    assert "SIGTERM" in status.error


def test_a_resumed_run_gets_the_checkpoints_of_its_ancestor(lab: Lab) -> None:
    first = lab.started("steps 60")
    lab.store.cancel(first)
    lab.finish(first)
    second = lab.store.resume(first)
    folder = lab.folder(second)
    handle = RunHandle(folder, folder.read_spec(), folder.read_status())
    assert handle.resume_from == lab.folder(first).checkpoints
    handle.start()
    handle.close()
    (event,) = lab.store.events(second)
    assert event["message"] == f"going on from the checkpoints of run {first} (checkpoint-7)"


def test_a_process_that_the_queue_does_not_name_leaves_the_run_alone(lab: Lab) -> None:
    running = lab.started("steps 60")
    for run_id in (running, lab.submit("nothing")):
        before = lab.folder(run_id).read_status().pid
        done = subprocess.run(fake_argv(lab.folder(run_id).path), capture_output=True, text=True, check=False)
        assert done.returncode == EXIT_NOT_MINE, done.stderr
        assert "leaving it alone" in done.stdout
        assert lab.folder(run_id).read_status().pid == before
        lab.store.cancel(run_id)


def test_the_status_follows_the_events_and_survives_damage(lab: Lab) -> None:
    run_id = lab.started("steps 60")
    lab.until(lambda: (lab.store.get(run_id).status.step or 0) > 3)
    status = lab.store.get(run_id).status
    assert (status.state, status.stage, status.total) == ("running", "training", 1000)
    lab.folder(run_id).status_path.write_text("broken")
    # The next heartbeat replaces it whole.
    lab.until(lambda: lab.store.get(run_id).problem == "" and lab.store.get(run_id).status.state == "running")
    lab.store.cancel(run_id)


def test_a_full_disk_does_not_stop_the_heart_or_the_last_word(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file kept aside is given back when the last word finds no room."""
    from llmrec_core.runs.worker import _Worker

    run_id = lab.submit("nothing")
    folder = lab.folder(run_id)
    worker = _Worker(folder, processes.current())
    folder.ballast_path.write_bytes(b"x" * 1000)
    write = RunFolder.write_status

    def full_while_ballast(self: RunFolder, *arguments: object, **options: bool) -> None:
        if folder.ballast_path.exists():
            raise OSError(28, "No space left on device")
        write(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(RunFolder, "write_status", full_while_ballast)
    worker._record(OSError(28, "No space left on device"))
    assert not folder.ballast_path.exists()
    status = folder.read_status()
    assert status.state == "failed"
    assert status.error is not None
    assert status.error.startswith("the disk is full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("job", ["disk_full", "disk_full_elsewhere"])
def test_the_last_word_is_written_although_the_log_is_full(lab: Lab, job: str) -> None:
    """The log lies on the disk that is full; what cannot be printed must not stop what can be written."""
    run_id = lab.submit(job)
    with open("/dev/full", "wb") as full, lab.store.queue.transaction() as transaction:
        child = subprocess.Popen(fake_argv(lab.folder(run_id).path), stdout=full, stderr=full)
        worker = processes.identify(child.pid)
        assert worker is not None
        transaction.claim(run_id, worker, owner=None)
    child.wait(20)
    status = lab.folder(run_id).read_status()
    assert status.state == "failed"
    assert status.error is not None
    assert status.error.startswith("the disk is full")


def test_only_the_worker_brings_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys, llmrec_core.runs, llmrec_core.runs.worker, llmrec_core.runs.__main__\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'shap', 'peft', 'streamlit'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
