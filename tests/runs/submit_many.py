"""Forks N processes that submit the same request at the same moment; prints the run ids they got, one a line."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmrec_core.runs.store import RunStore
from llmrec_core.specs import DatasetRef, RunSpec
from llmrec_core.workspace import Workspace


def main(root: str, n: int, key: str | None) -> None:
    start_at = time.monotonic() + 0.3
    children = []
    for _ in range(n):
        pid = os.fork()
        if pid == 0:
            time.sleep(max(0.0, start_at - time.monotonic()))
            store = RunStore(Workspace(Path(root)), lambda workspace, wanted: wanted)
            run_id = store.submit(RunSpec(name="nothing", dataset=DatasetRef(name="films", version=1)), key)
            os.write(1, f"{run_id}\n".encode())
            os._exit(0)
        children.append(pid)
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
