"""The child process behind the pages: one JSON request a line on stdin, one JSON answer a line on stdout.

It ends when its stdin closes, so it never outlives the app. Anything that libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any, TextIO

from llmrec_core.errors import LLMRecError
from llmrec_core.workspace import Workspace


def serve(workspace: Workspace, requests: TextIO, answers: TextIO) -> None:
    """Answers until ``requests`` ends. A request: ``{"id", "action", "args"}``."""
    # Late: the client may be waiting for the first sign of life while PyTorch loads.
    from llmrec_core.serving.actions import Server, find_action

    server = Server(workspace)
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            answer["result"] = find_action(server, request["action"])(**request["args"])
        except LLMRecError as error:
            answer["error"] = {
                "type": type(error).__name__,
                "what": error.what,
                "where": error.where,
                "fix": error.fix,
            }
        except Exception as error:  # the process must survive any one request; the log keeps the trace
            traceback.print_exc()
            answer["error"] = {
                "type": "LLMRecError",
                "what": f"the model process failed: {type(error).__name__}: {error}",
                "where": str(request["action"]),
                "fix": "See serving.log in the workspace.",
            }
        answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
        answers.flush()


def main() -> None:
    # Keep the real stdout for answers alone; whatever prints, prints to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    serve(Workspace.open(sys.argv[1]), requests, answers)


if __name__ == "__main__":
    main()
