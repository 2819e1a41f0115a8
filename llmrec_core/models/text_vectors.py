"""Item texts as vectors of a language model, and the whitening without which they are nearly parallel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmrec_core.models.laid_out import laid_out
from llmrec_core.models.loading import Backbone
from llmrec_core.models.memory import Portion

Vectors = npt.NDArray[np.float32]
#: Texts in one call of the tokenizer, which goes through them on all processors.
_TOKENISED_AT_ONCE = 8192


def embed_texts(backbone: Backbone, texts: Sequence[str], *, max_tokens: int = 64, batch_size: int = 64) -> Vectors:
    """One pooled vector a text, [n_texts, hidden_size]; equal texts are read once, long ones cut at ``max_tokens``.

    Where the device's memory runs out, smaller batches are read.

    Raises:
        RunFailedError: not even few texts fit.
    """
    backbone.model.eval()
    distinct = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    rows = token_rows(backbone, list(distinct), max_tokens)
    found = np.empty((len(rows), backbone.hidden_size), np.float32)
    by_length = _by_length(rows)
    portion = Portion(
        "memory is too small to read even a few texts with the language model.",
        where="model",
        fix="Take a smaller model, free memory of the device, or use another one.",
    )

    def read(part: slice) -> None:
        members = by_length[part]
        found[members] = _pooled(backbone, [rows[i] for i in members]).float().cpu().numpy()

    with torch.inference_mode(), laid_out(backbone.model, sum(map(len, rows))):
        portion.each(len(rows), batch_size, read, backbone.device)
    return found[[distinct[text] for text in texts]]


def token_rows(backbone: Backbone, texts: Sequence[str], max_tokens: int = 64) -> list[list[int]]:
    """Token ids of each text, at least one, at most ``max_tokens`` or what the model can read."""
    limit = min(max_tokens, backbone.max_tokens)
    rows: list[list[int]] = []
    for start in range(0, len(texts), _TOKENISED_AT_ONCE):
        some = [text or " " for text in texts[start : start + _TOKENISED_AT_ONCE]]
        for encoding in backbone.tokenizer.encode_batch_fast(some):
            row = encoding.ids
            # The last token of a BERT text closes it; a cut text keeps it.
            rows.append(row if len(row) <= limit else [*row[: limit - 1], row[-1]])
    return [row or [backbone.pad_id] for row in rows]


def read_rows(backbone: Backbone, rows: Sequence[Sequence[int]], batch_size: int = 64) -> Tensor:
    """Pooled outputs of token rows in their order, [n_rows, hidden_size]; gradients flow where they are wanted.

    Rows of like length are read together.
    """
    if not rows:
        return torch.empty(0, backbone.hidden_size, device=backbone.device)
    by_length = _by_length(rows)
    starts = range(0, len(rows), batch_size)
    parts = [_pooled(backbone, [rows[i] for i in by_length[start : start + batch_size]]) for start in starts]
    back = torch.from_numpy(np.argsort(by_length, kind="stable"))
    return torch.cat(parts)[back.to(backbone.device)]


def _by_length(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Their numbers, the shortest first."""
    return np.argsort([len(row) for row in rows], kind="stable").astype(np.int64)


def _pooled(backbone: Backbone, rows: Sequence[Sequence[int]]) -> Tensor:
    """Pooled outputs of one batch, [n_rows, hidden_size]."""
    batch = backbone.pad(rows)
    ids, mask = (batch[name].to(backbone.device) for name in ("input_ids", "attention_mask"))
    return backbone.pooled(ids, mask, backbone.default_pooling)


@dataclass(frozen=True)
class Whitening:
    """Mean [d] and map [d, k] that give vectors of zero mean and unit covariance."""

    mean: Vectors
    components: Vectors

    @classmethod
    def fit(cls, vectors: Vectors, n_components: int) -> Whitening:
        """PCA whitening of ``vectors`` [n, d]; directions without variance are left out.

        Fit it on the items of training rows: what a held-out catalogue looks like is not to be known.
        """
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors.astype(np.float64) - mean
        covariance = centred.T @ centred / max(1, len(vectors))
        values, directions = np.linalg.eigh(covariance)
        order = np.argsort(-values)[: min(n_components, max(1, len(vectors) - 1))]
        order = order[values[order] > max(1e-9, 1e-7 * float(values.max(initial=0.0)))]
        if not len(order):
            return cls(mean.astype(np.float32), np.zeros((vectors.shape[1], 1), np.float32))
        # The sign of an eigenvector is arbitrary; fixing it makes equal data give equal vectors everywhere.
        chosen = directions[:, order]
        chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(len(order))])
        return cls(mean.astype(np.float32), (chosen / np.sqrt(values[order])).astype(np.float32))

    def apply(self, vectors: Vectors) -> Vectors:
        """[n, d] -> [n, k]."""
        return ((vectors - self.mean) @ self.components).astype(np.float32)
