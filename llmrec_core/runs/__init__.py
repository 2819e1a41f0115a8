"""Runs: submitted as specs, queued, worked on by processes of their own, found again after anything.

:class:`RunStore` is what pages and the command line need to look and steer; a :class:`Supervisor` makes it happen.
Light: PyTorch is imported only inside a worker.
"""

from llmrec_core.runs.folder import RESUMABLE, TERMINAL, Run, RunStatus
from llmrec_core.runs.store import RunStore
from llmrec_core.runs.supervisor import (
    Supervisor,
    cancel_run,
    detach,
    reconcile,
    run_foreground,
    supervisor_for,
)

__all__ = [
    "RESUMABLE",
    "TERMINAL",
    "Run",
    "RunStatus",
    "RunStore",
    "Supervisor",
    "cancel_run",
    "detach",
    "reconcile",
    "run_foreground",
    "supervisor_for",
]
