"""Learned keys and values that every token may read: prefix tuning and prompt tuning, for packed and for plain rows.

Both put ``n`` states before the text and leave the model as it is. Prefix tuning (Li and Liang, ACL 2021) learns the
keys and values of every layer; prompt tuning (Lester et al., EMNLP 2021) learns ``n`` embeddings, and the model itself
makes keys and values of them. What stands before the text does not depend on it, so it is computed once a call and not
once a row, and reaches the layers as a cache of keys and values: the way of decoders, which attention layers of
encoders take as well. Candidates that share a row see the same states, so shared histories stay what they are.

Tokens keep their own positions, so no text gets shorter. The states stand before position 0 where positions are
relative (rotary embeddings), and at position 0 where they are looked up in a table.

The model keeps its class and its forward: a hook completes what it is called with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llmrec_core.errors import SpecError

#: Model types whose attention takes a ready mask and whose positions are given from outside, counted from 0.
#: Others (relative position biases, sliding windows, positions counted from the mask) read each prompt alone.
READY_MASK_TYPES = frozenset({"bert", "electra", "gpt2", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"})
#: Of these, the ones that look positions up in a table.
_TABLE_TYPES = frozenset({"bert", "electra", "gpt2"})
#: Name of the part that is added to a model.
SOFT_NAME = "soft_states"


class SoftStates(nn.Module):
    """What stands before every text.

    Args:
        n_states: how many.
        deep: True learns keys and values of every layer (prefix), False embeddings (prompt).

    Attributes:
        embeddings: float32 [n_states, hidden_size] (prompt).
        keys_values: float32 [n_layers, 2, n_key_value_heads, n_states, head_size] (prefix).
        enabled: False leaves the model as it came.
    """

    def __init__(self, model: PreTrainedModel, n_states: int, seed: int, *, deep: bool) -> None:
        super().__init__()
        self.n_states, self.enabled = n_states, True
        self.n_layers: int = model.config.num_hidden_layers
        self.causal = model.config.model_type not in ("bert", "electra")
        self.tabled = model.config.model_type in _TABLE_TYPES
        table: Any = model.get_input_embeddings()
        drawn = torch.randperm(table.num_embeddings, generator=torch.Generator().manual_seed(seed))
        # Real words: random vectors are far from what a model has learned to read (Li and Liang, section 7.4).
        words = drawn[torch.arange(n_states) % len(drawn)].to(table.weight.device)
        self.embeddings = nn.Parameter(table.weight.detach()[words].float(), requires_grad=not deep)
        self.keys_values: nn.Parameter | None = None
        if deep:
            training = model.training
            model.eval()
            with torch.no_grad():
                self.keys_values = nn.Parameter(self._read(model).float())
            model.train(training)
            del self.embeddings

    def _read(self, model: PreTrainedModel) -> Tensor:
        """Keys and values that the model makes of the embeddings, [n_layers, 2, n_heads, n_states, head_size]."""
        cache = DynamicCache()
        device = self.embeddings.device
        place = torch.arange(-self.n_states, 0, device=device)[None]
        was, self.enabled = self.enabled, False
        try:
            model(
                inputs_embeds=self.embeddings[None].to(model.dtype),
                attention_mask=_mask(torch.ones_like(place), model.dtype, causal=self.causal),
                position_ids=torch.zeros_like(place) if self.tabled else place,
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            self.enabled = was
        # Layers of a fresh DynamicCache are plain ones; its annotations allow for every kind.
        layers: list[Any] = list(cache.layers)
        return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in layers])

    def cache(self, model: PreTrainedModel, n_rows: int) -> DynamicCache:
        """Keys and values before ``n_rows`` texts; gradients reach what is learned."""
        found = self.keys_values if self.keys_values is not None else self._read(model)
        device = found.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
        cache = DynamicCache()
        for number, (keys, values) in enumerate(found.to(dtype)):
            cache.update(keys.expand(n_rows, -1, -1, -1), values.expand(n_rows, -1, -1, -1), number)
        return cache

    def complete(self, model: PreTrainedModel, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """What the model is called with, with the states before it (a forward pre-hook)."""
        if not self.enabled:
            return None
        if args:
            raise TypeError("a model with learned states takes its inputs by name")
        ids = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
        n_rows, n_tokens = ids.shape[:2]
        dtype = torch.get_autocast_dtype(ids.device.type) if torch.is_autocast_enabled(ids.device.type) else model.dtype
        cache = given.get("past_key_values")
        known = cache.get_seq_length() if cache is not None else 0
        changed: dict[str, Any] = {}
        mask = given.get("attention_mask")
        # Attention by blocks (``training.scoring``) needs no mask, and finds what was given before the row by itself.
        if given.get("blocks") is None:
            if mask is None:
                if known:
                    raise TypeError("a text that goes on needs its mask")
                mask = torch.ones((n_rows, n_tokens), dtype=torch.long, device=ids.device)
            if mask.ndim == 2:
                mask = _mask(mask, dtype, causal=self.causal)
            if mask.shape[-1] != n_tokens + (known - self.n_states if known else 0):
                raise TypeError(f"a mask over {mask.shape[-1]} tokens does not fit {n_tokens} behind {known} states")
            seen = mask.new_zeros((*mask.shape[:-1], self.n_states))
            changed["attention_mask"] = torch.cat([seen, mask], dim=-1)
        if not known:
            changed["past_key_values"] = self.cache(model, n_rows)
        if given.get("position_ids") is None:
            changed["position_ids"] = torch.arange(n_tokens, device=ids.device).expand(n_rows, -1)
        return args, {**given, **changed}

    def trim(self, model: PreTrainedModel, args: tuple[Any, ...], given: Mapping[str, Any], found: Any) -> Any:
        """Attention among the tokens of the text alone (a forward hook); hidden states are of the text already."""
        if self.enabled and getattr(found, "attentions", None):
            found.attentions = tuple(layer[..., self.n_states :] for layer in found.attentions)
        return found


def add_soft_states(model: PreTrainedModel, n_states: int, seed: int, *, deep: bool) -> None:
    """Puts learned states before everything that ``model`` reads, in place; all else is frozen.

    Args:
        n_states: how many.
        seed: of the words that they begin as.
        deep: prefix tuning; else prompt tuning.

    Raises:
        SpecError: the model takes no ready mask.
    """
    windowed = getattr(model.config, "sliding_window", None) is not None
    if model.config.model_type not in READY_MASK_TYPES or windowed:
        raise SpecError(
            f"{type(model).__name__} takes no states before the text.",
            where="tuning.method",
            fix="Choose lora, ia3 or bottleneck.",
        )
    model.requires_grad_(False)
    soft = SoftStates(model, n_states, seed, deep=deep)
    model.add_module(SOFT_NAME, soft)
    model.register_forward_pre_hook(soft.complete, with_kwargs=True)
    model.register_forward_hook(soft.trim, with_kwargs=True)


def soft_states(model: nn.Module) -> SoftStates | None:
    """What :func:`add_soft_states` put before a model."""
    found = getattr(model, SOFT_NAME, None)
    return found if isinstance(found, SoftStates) else None


def _mask(tokens: Tensor, dtype: torch.dtype, *, causal: bool) -> Tensor:
    """Additive mask [n_rows, 1, length, length] of plain rows from ``tokens``, 1 for tokens and 0 for padding."""
    length = tokens.shape[1]
    allowed = (tokens > 0)[:, None, :].expand(-1, length, -1)
    if causal:
        allowed = allowed & torch.ones((length, length), dtype=torch.bool, device=tokens.device).tril()
    mask = torch.zeros(allowed.shape, dtype=dtype, device=tokens.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min / 4).unsqueeze(1)
