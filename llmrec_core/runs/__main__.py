"""``python -m llmrec_core.runs WORKSPACE [--until-idle]``: serves a workspace's queue without the app."""

from __future__ import annotations

import argparse

from llmrec_core.runs.supervisor import serve
from llmrec_core.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llmrec_core.runs", description=__doc__)
    parser.add_argument("workspace", help="workspace folder")
    parser.add_argument("--until-idle", action="store_true", help="end when nothing is queued or running")
    options = parser.parse_args()
    serve(Workspace.open(options.workspace), until_idle=options.until_idle)


if __name__ == "__main__":
    main()
