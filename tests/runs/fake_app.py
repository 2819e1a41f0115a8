"""An app without screens: a supervisor thread over invented jobs, until it is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs.runs_lab import IMPATIENT, fake_argv

from llmrec_core.runs.supervisor import Supervisor
from llmrec_core.workspace import Workspace

if __name__ == "__main__":
    Supervisor(Workspace(Path(sys.argv[1])), fake_argv, IMPATIENT).start()
    time.sleep(60)
