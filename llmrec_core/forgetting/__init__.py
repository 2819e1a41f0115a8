"""A person asks to be forgotten: gone from every version of a dataset, from runs, feedback, uploads and logs.

The one place where data and runs are changed together after the fact. What a model learnt stays in its weights; such
models are flagged, since only training again takes it out.
"""

from llmrec_core.forgetting.forget import ForgetReport, forget_user

__all__ = ["ForgetReport", "forget_user"]
