"""The network that is trained: a language model without its head, pooling, and heads that give a score a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.label_words import AnswerHeads, LetterHeads
from llmrec_core.models.loading import Backbone
from llmrec_core.training import scoring, unpadded
from llmrec_core.training.packing import Packed, TokenisedPrompts, pooling_weights
from llmrec_core.training.packing import tree_mask as tree_mask_of

if TYPE_CHECKING:
    from llmrec_core.training.frozen import KeptStates

Pooling = Literal["mean", "cls", "last", "mask"]

#: Tails in one row while training: more save few head tokens, and attention over a row grows with its square.
MAX_TAILS = 10


def can_share(backbone: Backbone, pooling: Pooling) -> bool:
    """Whether histories can be read once for many candidates with this model (see ``packing``)."""
    return scoring.reads_trees(backbone) and pooling != "cls"


class PromptNetwork(nn.Module):
    """Scores of packed prompts.

    Args:
        backbone: its model is used as it is; tuning was applied before.
        heads: float32 heads: linear ones, or answers in words.
        pooling: how the tokens that have read the candidate become one vector.
        shared: whether prompts are cut into head and tail (see ``packing``).
        autocast: dtype of matrix products under autocast; None: as the weights are.
        mask_id: the token whose state is pooled by "mask".
    """

    #: Told to transformers' Trainer: the loss is a mean over the batch and is divided by accumulation steps there.
    accepts_loss_kwargs = False

    def __init__(
        self,
        backbone: Backbone,
        heads: TaskHeads | AnswerHeads | LetterHeads,
        *,
        pooling: Pooling,
        shared: bool,
        autocast: torch.dtype | None = None,
        mask_id: int = -1,
    ) -> None:
        super().__init__()
        self.encoder = backbone.model
        self.heads = heads.to(backbone.device)
        self.backbone = backbone
        self.pooling: Pooling = pooling
        self.mask_id = mask_id
        self.shared = shared
        self.autocast = autocast
        self.causal = backbone.kind == "decoder"
        #: Whether packed prompts are computed without their padding; see ``training.unpadded``.
        self.unpadded = False
        #: Of prompts that are scored again and again while the network is trained; see ``training.frozen``.
        self.kept: KeptStates | None = None

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def computes_in(self) -> torch.dtype:
        """Of matrix products, and so of what attention adds to scores."""
        found: torch.dtype = self.autocast or self.encoder.dtype
        return found

    def pooling_weights(self, packed: Packed) -> Tensor:
        """How token states become one vector a prompt; see :func:`llmrec_core.training.packing.pooling_weights`."""
        return pooling_weights(packed, self.pooling, self.mask_id)

    def forward(self, packed: Packed) -> dict[str, Tensor]:
        """Raw outputs of every head, float32 [n_prompts]."""
        return self.heads(self.vectors(packed))

    def vectors(self, packed: Packed) -> Tensor:
        """What the heads read of each prompt, float32 [n_prompts, hidden_size]."""
        packed = packed.to(self.device)
        if self.unpadded:
            return unpadded.vectors(self, packed)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            hidden = self._hidden(packed)
        # Summed in float32: in bf16 a mean over twenty tokens already loses a digit.
        vectors = torch.bmm(self.pooling_weights(packed), hidden.float())
        return vectors[packed.row, packed.slot]

    def _hidden(self, packed: Packed) -> Tensor:
        if self.shared:
            mask = tree_mask_of(packed.segment, packed.position_ids, self.computes_in, causal=self.causal)
            return self.encoder(
                input_ids=packed.input_ids, attention_mask=mask, position_ids=packed.position_ids
            ).last_hidden_state
        return self.encoder(input_ids=packed.input_ids, attention_mask=(packed.segment >= 0).long()).last_hidden_state

    @torch.inference_mode()
    def predict(self, tokens: TokenisedPrompts, tasks: tuple[str, ...]) -> dict[str, npt.NDArray[np.float32]]:
        """Raw outputs of the named heads, float32 [n_prompts] (or wider); see ``training.scoring``."""
        training = self.training
        self.eval()
        try:
            return scoring.predict(self, tokens, tasks)
        finally:
            self.train(training)

    @torch.inference_mode()
    def attention(self, packed: Packed) -> npt.NDArray[np.float32]:
        """Attention of one row, float32 [n_layers, n_heads, n_tokens, n_tokens]; rows sum to 1.

        Eager attention is switched on for the call: fused kernels do not give their weights away.
        """
        config = self.encoder.config
        before, training = config._attn_implementation, self.training
        self.eval()
        self.encoder.set_attn_implementation("eager")
        try:
            packed = packed.to(self.device)
            mask = tree_mask_of(packed.segment, packed.position_ids, self.encoder.dtype, causal=self.causal)
            extra = {"position_ids": packed.position_ids} if self.shared else {}
            found = self.encoder(
                input_ids=packed.input_ids,
                attention_mask=mask if self.shared else (packed.segment >= 0).long(),
                output_attentions=True,
                **extra,
            ).attentions
        finally:
            self.encoder.set_attn_implementation(before)
            self.train(training)
        n_tokens = int((packed.segment[0] >= 0).sum())
        parts = [layer[0, :, :n_tokens, :n_tokens].float() for layer in found]
        most = max(len(part) for part in parts)
        # Layers that lost heads (see compression) show the mean of theirs in the places of those.
        layers = torch.stack(
            [torch.cat([part, part.mean(0, keepdim=True).expand(most - len(part), -1, -1)]) for part in parts]
        )
        # bf16 rows sum to 1 only roughly.
        return (layers / layers.sum(-1, keepdim=True)).cpu().numpy()
