"""Whole-number weights: a child of a tuned cross-encoder in 8 or 4 bits, without training."""

from __future__ import annotations

import copy
from dataclasses import replace

from llmrec_core.errors import InputError
from llmrec_core.models.compact import KEY, Compact, quantise, read_note
from llmrec_core.models.loading import Backbone
from llmrec_core.models.tuning import merge_adapters
from llmrec_core.specs.compression import Int4Spec, Int8Spec


def whole_model(backbone: Backbone) -> Backbone:
    """A copy with adapters merged into the weights they belong to.

    Raises:
        InputError: its weights are whole numbers already.
    """
    note = read_note(backbone.facts.config)
    if note is not None and note.quantised:
        raise InputError(
            "this run holds whole-number weights already.",
            where="parent_run",
            fix="Compress the run that it was made from.",
        )
    return replace(backbone, model=merge_adapters(copy.deepcopy(backbone.model)))


def noted(backbone: Backbone, **changes: object) -> Backbone:
    """``backbone`` with these fields in the note of its configuration."""
    note = read_note(backbone.facts.config) or Compact()
    fields = Compact.model_validate(note.model_dump() | changes)
    return replace(
        backbone, facts=replace(backbone.facts, config={**backbone.facts.config, KEY: fields.model_dump(mode="json")})
    )


def quantised(backbone: Backbone, spec: Int8Spec | Int4Spec) -> Backbone:
    """A copy in whole numbers; norms, positions and biases stay as they are."""
    if isinstance(spec, Int8Spec):
        fields: dict[str, object] = {"linear_bits": 8, "activations": spec.activations}
    else:
        fields = {"linear_bits": 4, "group_size": spec.group_size}
    child = noted(whole_model(backbone), embeddings=spec.embeddings, **fields)
    note = read_note(child.facts.config)
    assert note is not None
    # Heads that are gone already are noted, and are not to be cut again.
    quantise(child.model, note)
    return child
