"""What somebody wants of a compression that is under way."""

from __future__ import annotations

from llmrec_core.contracts import FitContext
from llmrec_core.errors import RunCancelledError


def asked_to_stop(ctx: FitContext) -> bool:
    """Whether somebody wants what there is by now.

    Raises:
        RunCancelledError: somebody wants nothing of it.
    """
    asked = ctx.should_stop()
    if asked == "cancel":
        raise RunCancelledError("the run was cancelled.")
    return asked == "stop"
