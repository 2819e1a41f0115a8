"""``python -m llmrec_core.cli``."""

from llmrec_core.cli import main

main()
