"""Why this item for this user: players, exact Shapley values, attention roll-out.

Import the parts by name (``llmrec_core.explanation.explain``); this package's ``__init__`` loads nothing heavy.
"""
