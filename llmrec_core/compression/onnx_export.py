"""A tuned cross-encoder or decoder with its heads as an ONNX file that gives the same scores without PyTorch.

The graph reads packed rows as ``training.packing`` lays them out: tokens, their positions, and which sequence of a row
each belongs to. A plain prompt is the simplest such row: positions 0, 1, 2 ..., segment 1 throughout, -1 for padding.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_core.compression.quantise import whole_model
from llmrec_core.errors import InputError, LLMRecError
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.label_words import AnswerHeads
from llmrec_core.models.tuning_soft import READY_MASK_TYPES
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.onnx_encoder import GRAPH, OnnxCrossEncoder, require_onnx
from llmrec_core.recommenders.reworked import network_of, with_backbone
from llmrec_core.specs.compression import OnnxSpec
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import Packed, pooling_weights, tree_mask
from llmrec_core.training.scoring import reads_trees

#: The first with GELU as one operation.
_OPSET = 20
#: A file of protocol buffers holds 2 GB; the graph itself needs little of that.
_MAX_BYTES = 1_900_000_000


class _Graph(nn.Module):
    """The whole computation from packed tokens to one output a task, [n_rows, n_slots] each."""

    def __init__(self, network: PromptNetwork) -> None:
        super().__init__()
        assert isinstance(network.heads, TaskHeads | AnswerHeads)
        self.encoder, self.heads = network.encoder, network.heads
        self.causal, self.pooling, self.mask_id = network.causal, network.pooling, network.mask_id
        self.tasks = tuple(network.heads.tasks)
        # Nothing is read twice here, and a graph has no place for keys and values that are kept.
        self.more = {"use_cache": False} if network.causal else {}

    def forward(self, input_ids: Tensor, position_ids: Tensor, segment: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        mask = tree_mask(segment, position_ids, torch.float32, causal=self.causal)
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, **self.more
        ).last_hidden_state
        none = torch.zeros(0, dtype=torch.int64)
        packed = Packed(input_ids, position_ids, segment, none, none, 0)
        vectors = torch.bmm(pooling_weights(packed, self.pooling, self.mask_id, slots), hidden.float())
        found = self._scores(vectors.flatten(0, 1))
        return tuple(found[task].reshape(vectors.shape[:2]) for task in self.tasks)

    def _scores(self, vectors: Tensor) -> dict[str, Tensor]:
        """Of [n, hidden_size]. The heads' own forward switches autocast off, which a graph has no word for."""
        if isinstance(self.heads, TaskHeads):
            return {task: head(vectors).squeeze(-1) for task, head in self.heads.heads.items()}
        model: Any = self.heads.head.model
        return self.heads.of_logits(model(inputs_embeds=vectors.unsqueeze(1)).logits[:, 0])


def exported(reader: CrossEncoderRecommender, spec: OnnxSpec) -> OnnxCrossEncoder:
    """The same recommender, scored by ONNX Runtime.

    Raises:
        InputError: the packages are missing (extra "onnx"), this architecture takes no mask from outside, its weights
            are whole numbers, or are too many for one file.
        LLMRecError: the export failed.
    """
    onnx = require_onnx("onnx")
    require_onnx("onnxscript")
    network = network_of(reader)
    if not reads_trees(network.backbone) or not isinstance(network.heads, TaskHeads | AnswerHeads):
        raise InputError(
            f"models of the kind {network.backbone.facts.model_type} have no ONNX form here: they take no mask from "
            "outside.",
            where="compression.method",
            fix=f"Use int8, or a model of one of the kinds {', '.join(sorted(READY_MASK_TYPES))}.",
        )
    plain = network_of(with_backbone(reader, whole_model(network.backbone)))
    # A copy already, moved to where the example below lies; the runtime works on processors anyhow.
    plain.cpu().float()
    n_bytes = sum(4 * weight.numel() for weight in plain.parameters())
    if n_bytes > _MAX_BYTES:
        raise InputError(
            f"in float32 the model has {n_bytes / 1e9:.1f} GB, and one ONNX file holds {_MAX_BYTES / 1e9:.1f} GB.",
            where="compression.method",
            fix="Use int8, or take out layers first and export that run.",
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / GRAPH
        _export(_Graph(plain).eval(), path, plain)
        if spec.int8:
            _round(path)
        graph = path.read_bytes()
    onnx.checker.check_model(onnx.load_model_from_string(graph))
    return OnnxCrossEncoder.around(reader, graph)


def _export(graph: _Graph, path: Path, network: PromptNetwork) -> None:
    ids = torch.full((2, 16), network.backbone.pad_id, dtype=torch.int64)
    positions = torch.arange(16).repeat(2, 1)
    segment = torch.ones(2, 16, dtype=torch.int64)
    segment[:, :4], segment[:, 10:] = 0, 2
    rows, tokens, slots = (torch.export.Dim(name, min=1, max=2**16) for name in ("rows", "tokens", "slots"))
    shapes: Any = {
        "input_ids": {0: rows, 1: tokens},
        "position_ids": {0: rows, 1: tokens},
        "segment": {0: rows, 1: tokens},
        "slots": {0: slots},
    }
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # Of the exporter's own making; what comes out is compared with PyTorch by the tests.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (ids, positions, segment, torch.arange(1, 4)),
                str(path),
                input_names=["input_ids", "position_ids", "segment", "slots"],
                output_names=list(graph.tasks),
                dynamic_shapes=shapes,
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        # The exporter raises what it likes; the reason is for people.
        raise LLMRecError(
            f"the model could not be written as ONNX: {type(error).__name__}: {str(error)[:300]}.",
            fix="Use int8 instead, or another version of onnxscript.",
        ) from error


def _round(path: Path) -> None:
    """ONNX Runtime's dynamic quantisation of linear layers and tables, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    # It advises a step that is for convolutions, through the root logger.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(path, path, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.disable(before)
