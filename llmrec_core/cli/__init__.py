"""``llmrec``: the same specs and actions as the pages.

Progress goes to stderr; with ``--json`` stdout carries exactly one JSON document. Exit codes: 0 done, 2 the input
was refused, 3 not found, 130 cancelled, 1 anything else. Heavy imports wait until a command needs them.
"""

import os

from llmrec_core.cli import ask, compress, data, machine, privacy, runs, split
from llmrec_core.cli._shared import app
from llmrec_core.runs.processes import sharing_environment

__all__ = ["app", "ask", "compress", "data", "machine", "main", "privacy", "runs", "split"]


def main() -> None:
    """Entry point of ``llmrec``."""
    # Read when PyTorch is loaded, which is later.
    os.environ.update(sharing_environment())
    app()
