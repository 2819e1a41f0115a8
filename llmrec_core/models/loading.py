"""From a checked model folder to a backbone: the bare model, its tokenizer, and token states made into one vector.

Nothing is looked up by name here: the configuration and the weights are read from the files that
``check_model_folder`` accepted, the tokenizer from ``tokenizer.json`` alone. That file is also what counts tokens in
``prompts``, so a prompt inside its budget stays inside it here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llmrec_core.errors import InputError, ModelError, SpecError
from llmrec_core.models.checking import Kind, ModelFacts, check_model_folder, read_json_object
from llmrec_core.models.compact import KEY, make_compact, plain_weights, read_note
from llmrec_core.prompts.tokens import reads_by_parts

Pooling = Literal["mean", "cls", "last"]
Attention = Literal["auto", "eager", "sdpa"]

#: Where architectures keep the dropout of their layers.
_DROPOUT_KEYS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "embedding_dropout", "mlp_dropout",
)  # fmt: skip


@dataclass
class Backbone:
    """A language model without a head.

    Attributes:
        model: its forward takes ``input_ids`` and ``attention_mask`` [n, length] and returns ``last_hidden_state``
            [n, length, hidden_size].
        tokenizer: the fast tokenizer, without truncation or padding of its own.
        max_tokens: longest text the model can read, special tokens included.
        pad_id: id put behind shorter texts; the mask hides it, so its state is never used.
        attention: the implementation in use ("eager" is the one that can return attention weights).
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    facts: ModelFacts
    pad_id: int
    attention: str

    @property
    def kind(self) -> Kind:
        return self.facts.kind

    @property
    def hidden_size(self) -> int:
        return self.facts.hidden_size

    @property
    def n_layers(self) -> int:
        return self.facts.n_layers

    @property
    def max_tokens(self) -> int:
        return self.facts.max_tokens

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Ids of the special tokens before and behind every text; None where a text cannot be read in parts.

        See ``prompts.tokens.reads_by_parts``.
        """
        if not reads_by_parts(json.loads(self.tokenizer.to_str())):
            return None
        framed = self.tokenizer.encode("a")
        own = [place for place, special in enumerate(framed.special_tokens_mask) if not special]
        return (tuple(framed.ids[: own[0]]), tuple(framed.ids[own[-1] + 1 :])) if own else None

    @property
    def default_pooling(self) -> Pooling:
        """Mean for encoders; last for decoders, where only the last token has read everything."""
        return "mean" if self.kind == "encoder" else "last"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with the model's special tokens; nothing is cut away.

        Raises:
            InputError: a text has no token, or more than ``max_tokens``; cutting it here could cut the candidate.
        """
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        for position, row in enumerate(ids):
            self._check_length(len(row), position)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
        """Token ids of one text and, for each, its [start, end) in the text: int64 [n_tokens, 2].

        Special tokens stand at (0, 0). Positions count characters, as spans of a prompt do.

        Raises:
            InputError: as :meth:`encode`.
        """
        encoding = self.tokenizer.encode(text)
        self._check_length(len(encoding.ids), 0)
        return encoding.ids, np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def pad(self, rows: Sequence[Sequence[int]], multiple_of: int = 1) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (int64 [n_rows, longest]) on the CPU, padded on the right."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        width = -(-int(lengths.max(initial=1)) // multiple_of) * multiple_of
        mask = np.arange(width) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}

    def pooled(self, input_ids: Tensor, attention_mask: Tensor, how: Pooling) -> Tensor:
        """One vector a text: float [n, hidden_size], in the dtype of the model's output."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, how)

    def _check_length(self, n_tokens: int, position: int) -> None:
        if not 1 <= n_tokens <= self.max_tokens:
            raise InputError(
                f"a text has {n_tokens} tokens; the model reads 1 to {self.max_tokens}.",
                where=f"text {position}",
                fix="Set prompt.max_tokens to at most the model's limit.",
            )


def load_backbone(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    attention: Attention = "auto",
    trainable: bool = True,
) -> Backbone:
    """The model of a folder, checked first, without its pooler and language-model head.

    Args:
        folder: a model folder; it is run through ``check_model_folder``.
        device: where the weights go.
        dtype: of the weights. For training in bf16, fp32 weights under autocast keep small updates.
        dropout: set in every layer that has dropout; 0 is faster and enough for one short epoch.
        attention: "auto" is eager on the CPU, where PyTorch's fused attention is slow backwards, else sdpa.
        trainable: False freezes all weights and switches dropout off (evaluation mode).

    Raises:
        NotFoundError: there is no such folder.
        ModelError: the folder is unsafe, damaged, or its weights do not fit its configuration.
        SpecError: unknown attention.
    """
    device = torch.device(device)
    if attention not in ("auto", "eager", "sdpa"):
        raise SpecError(f"unknown attention {attention!r}.", fix="Known are auto, eager, sdpa.")
    chosen = ("eager" if device.type == "cpu" else "sdpa") if attention == "auto" else attention
    facts = check_model_folder(folder)
    tokenizer, pad_id = load_tokenizer(facts)
    try:
        config = _config(facts, dropout)
        note = read_note(facts.config, str(facts.folder))
        model_class = _model_class(config)
        if chosen == "sdpa" and attention == "auto" and not getattr(model_class, "_supports_sdpa", False):
            chosen = "eager"
        skeleton = _checked_skeleton(facts, config, model_class, compact=note is not None)
        weights: dict[str, Tensor] = {}
        for name in facts.weight_files:
            weights.update(load_file(facts.folder / name))
        stored: dict[str, Tensor] = {}
        if note is not None:
            if trainable and note.quantised:
                raise ModelError(
                    "whole-number weights cannot be trained.",
                    where=str(facts.folder),
                    fix="Go on from the run that this one was compressed from.",
                )
            with quiet():
                stored, weights = weights, plain_weights(skeleton, note, weights, str(facts.folder))
        with quiet():
            # No path is handed over: with the state given, transformers reads no file and asks no hub.
            model, report = model_class.from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, attn_implementation=chosen,
                output_loading_info=True, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:
        # Whatever a crooked config.json makes transformers raise, it is the folder that was wrong.
        raise ModelError(
            f"the model cannot be built from its files: {type(error).__name__}: {str(error)[:300]}.",
            where=str(facts.folder),
            fix="Check that config.json belongs to these weights.",
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing, among them {', '.join(missing[:3])}.",
            where=str(facts.folder),
            fix="Check that config.json belongs to these weights.",
        )
    if getattr(model, "pooler", None) is not None:
        # Heads read token states; an unused pooler would count as trainable and never get a gradient.
        model.pooler = None
    model.config.use_cache = False
    model.to(device=device, dtype=dtype)
    if note is not None:
        make_compact(model, note, stored)
    model.requires_grad_(trainable)
    model.train(trainable)
    return Backbone(model=model, tokenizer=tokenizer, facts=facts, pad_id=pad_id, attention=chosen)


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Writes the backbone (adapters merged before) so that :func:`load_backbone` reads it back with equal outputs.

    Args:
        folder: an existing folder; config.json, model.safetensors and the tokenizer's files are written into it.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in backbone.facts.config.items() if key not in ("torch_dtype", "architectures")}
    config["dtype"] = str(backbone.model.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        source = backbone.facts.folder / name
        if source.exists():
            (folder / name).write_bytes(source.read_bytes())


def pool(hidden: Tensor, attention_mask: Tensor, how: Pooling) -> Tensor:
    """Token states to one vector a text.

    Args:
        hidden: float [n, length, hidden_size].
        attention_mask: 1 for tokens, 0 for padding on the right, [n, length]; every row has a token.
        how: "mean" over tokens, "cls" the first token, "last" the last token before the padding.

    Returns:
        float [n, hidden_size], dtype of ``hidden``; means are summed in float32.

    Raises:
        SpecError: unknown ``how``.
    """
    if how == "mean":
        weights = attention_mask.to(torch.float32).unsqueeze(-1)
        total = (hidden.float() * weights).sum(1)
        return (total / weights.sum(1).clamp_min(1.0)).to(hidden.dtype)
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        last = attention_mask.sum(1).sub(1).clamp_min(0)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    raise SpecError(f"unknown pooling {how!r}.", fix="Known are mean, cls, last.")


def load_tokenizer(facts: ModelFacts) -> tuple[Tokenizer, int]:
    """The fast tokenizer of a checked folder, without truncation and padding, and the id to pad with.

    Raises:
        ModelError: tokenizer.json is damaged, or gives ids that the model has no vector for.
    """
    try:
        tokenizer = Tokenizer.from_file(str(facts.tokenizer_file))
    except Exception as error:
        # The tokenizers library raises bare Exception for every fault in the file.
        raise ModelError(
            f"the tokenizer cannot be read: {str(error)[:300]}.",
            where=str(facts.tokenizer_file),
            fix="Save the model's fast tokenizer again.",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    n_words = facts.config.get("vocab_size")
    if type(n_words) is int and max(tokenizer.get_vocab().values(), default=0) >= n_words:
        raise ModelError(
            f"the tokenizer knows ids beyond the model's {n_words:,} words.",
            where=str(facts.tokenizer_file),
            fix="Use the tokenizer that belongs to the model.",
        )
    return tokenizer, _pad_id(facts, tokenizer)


def _pad_id(facts: ModelFacts, tokenizer: Tokenizer) -> int:
    """The tokenizer's or model's padding id; models without one are padded with end-of-text (hidden by the mask)."""
    settings_file = facts.folder / "tokenizer_config.json"
    settings = read_json_object(settings_file, 4_000_000, settings_file.name) if settings_file.exists() else {}
    candidates: list[Any] = []
    for key in ("pad_token", "eos_token"):
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        candidates += [tokenizer.token_to_id(text) if isinstance(text, str) else None, facts.config.get(f"{key}_id")]
    n_words = tokenizer.get_vocab_size()
    return next((c for c in candidates if type(c) is int and 0 <= c < n_words), 0)


def _config(facts: ModelFacts, dropout: float) -> PreTrainedConfig:
    values = {
        key: value for key, value in facts.config.items() if key not in ("model_type", "transformers_version", KEY)
    }
    config = AutoConfig.for_model(facts.model_type, **values)
    for key in _DROPOUT_KEYS:
        if isinstance(getattr(config, key, None), int | float):
            setattr(config, key, dropout)
    return config


def _model_class(config: PreTrainedConfig) -> Any:
    """The class without a head; some configurations list several, the first is the plain one."""
    found: Any = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _checked_skeleton(
    facts: ModelFacts, config: PreTrainedConfig, model_class: Any, *, compact: bool
) -> PreTrainedModel:
    """The model without memory for its weights; refuses a configuration that asks for more than the files hold.

    ``compact``: how many they must be is known only with the note (see ``models.compact``), which compares each one.
    """
    with torch.device("meta"), quiet():
        skeleton: PreTrainedModel = model_class(config)
    if compact:
        return skeleton
    needed = sum(p.numel() for name, p in skeleton.named_parameters() if not name.startswith("pooler."))
    if needed > facts.n_parameters:
        raise ModelError(
            f"config.json asks for {needed:,} weights and the files hold {facts.n_parameters:,}.",
            where=str(facts.folder),
            fix="Check that config.json belongs to these weights.",
        )
    return skeleton


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice about unused heads: what matters is checked and raised as an error."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
