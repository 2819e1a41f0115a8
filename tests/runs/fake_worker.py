"""A real worker process with an invented job, chosen by the label of its spec: ``sleep 0.5``, ``fail`` ..."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmrec_core.errors import DataError, RunCancelledError
from llmrec_core.runs.handle import RunHandle
from llmrec_core.runs.worker import main
from llmrec_core.specs import RunSpec


def job(spec: RunSpec, run: RunHandle) -> dict[str, Any]:
    words = spec.name.split()
    what, value = words[0], float(words[1]) if len(words) > 1 else 0.0
    run.emit("stage", stage="training")
    (run.artifacts_dir / "weights.bin").write_bytes(b"weights" * 100)
    JOBS[what](run, value)
    return {
        "answer": 42,
        "loss": float("nan"),
        "dataset": {"name": spec.dataset.name, "version": spec.dataset.version, "fingerprint": "f" * 64},
    }


def nothing(run: RunHandle, value: float) -> None:
    """Ends at once."""


def steps(run: RunHandle, seconds: float) -> None:
    """Works in small steps, checkpoints, and listens."""
    end, step = time.monotonic() + seconds, 0
    (run.checkpoint_dir / "checkpoint-7").mkdir()
    (run.checkpoint_dir / "checkpoint-7" / "state.json").write_text("{}")
    while time.monotonic() < end:
        step += 1
        run.emit("train", step=step, total=1000, loss=1.0 / step)
        wish = run.should_stop()
        if wish == "cancel":
            raise RunCancelledError("cancelled")
        if wish == "stop":
            run.emit("log", level="info", message="stopped and kept")
            return
        time.sleep(0.02)


def deaf(run: RunHandle, seconds: float) -> None:
    """Never asks what people want, as a long save would; TERM reaches it."""
    time.sleep(seconds)


def stone_deaf(run: RunHandle, seconds: float) -> None:
    """Swallows even TERM, with a child that does too; only KILL of the group ends them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    (run.folder / "child.pid").write_text(str(child.pid))
    time.sleep(seconds)


def linger(run: RunHandle, seconds: float) -> None:
    """Says its last word and then does not go."""
    threading.Thread(target=time.sleep, args=(seconds,)).start()


def orphan(run: RunHandle, seconds: float) -> None:
    """Dies by KILL and leaves a child in its session."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    (run.folder / "child.pid").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def fail(run: RunHandle, value: float) -> None:
    raise ValueError("the loss is a teapot")


def refuse(run: RunHandle, value: float) -> None:
    raise DataError("no interaction is left.", where="split", fix="Lower the k-core.")


def disk_full(run: RunHandle, value: float) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(run.checkpoint_dir / "checkpoint-2"))


def disk_full_elsewhere(run: RunHandle, value: float) -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def memory(run: RunHandle, value: float) -> None:
    raise MemoryError


def vanish(run: RunHandle, value: float) -> None:
    print("the driver went away", flush=True)
    os._exit(9)


def device(run: RunHandle, seconds: float) -> None:
    """Says that "auto" became a GPU."""
    run.set_device("cuda:0")
    steps(run, seconds)


JOBS = {
    "nothing": nothing,
    "steps": steps,
    "deaf": deaf,
    "stone_deaf": stone_deaf,
    "linger": linger,
    "orphan": orphan,
    "fail": fail,
    "refuse": refuse,
    "disk_full": disk_full,
    "disk_full_elsewhere": disk_full_elsewhere,
    "memory": memory,
    "vanish": vanish,
    "device": device,
}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), job, heartbeat_s=0.1))
