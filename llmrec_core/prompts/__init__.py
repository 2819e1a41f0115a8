"""The prompts room: a template, a query and a candidate become text with spans, inside a token budget."""

from llmrec_core.prompts._items import LETTERS
from llmrec_core.prompts.render import CandidateList, PromptRenderer
from llmrec_core.prompts.sandbox import Limits, Program, Sandbox
from llmrec_core.prompts.templates import (
    STARTERS,
    VARIABLES,
    SavedTemplate,
    StarterTemplate,
    TemplateStore,
    check_template,
    paraphrase_source,
    template_source,
)
from llmrec_core.prompts.tokens import Counter, TokenCounter, WhitespaceCounter

__all__ = [
    "LETTERS",
    "STARTERS",
    "VARIABLES",
    "CandidateList",
    "Counter",
    "Limits",
    "Program",
    "PromptRenderer",
    "Sandbox",
    "SavedTemplate",
    "StarterTemplate",
    "TemplateStore",
    "TokenCounter",
    "WhitespaceCounter",
    "check_template",
    "paraphrase_source",
    "template_source",
]
