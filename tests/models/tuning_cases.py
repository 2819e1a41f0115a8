"""What tests of tuned models ask them."""

from __future__ import annotations

from torch import Tensor

from llmrec_core.models.loading import Backbone

TEXTS = ["a scary movie", "the user liked 电影 !"]


def outputs(backbone: Backbone, texts: list[str] = TEXTS) -> Tensor:
    """One vector a text, [n_texts, hidden_size]."""
    return backbone.pooled(**backbone.pad(backbone.encode(texts)), how="mean")
