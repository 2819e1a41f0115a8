"""A cross-encoder whose model is an ONNX graph: the same prompts, the same packing, scored by ONNX Runtime.

Folder: ``model.onnx`` (tokens to one number a task), ``model/`` (tokenizer and configuration, no weights), and
``inputs.json``, which says how to call the graph without this project.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llmrec_core.contracts import Capabilities, FitContext, Query
from llmrec_core.errors import InputError, ModelError
from llmrec_core.models.checking import ModelFacts, check_model_folder
from llmrec_core.models.loading import Backbone, load_tokenizer
from llmrec_core.recommenders._storage import check_head, read_run, write_head
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.saved import FIX, catalogue_sha256
from llmrec_core.specs import CrossEncoderSpec
from llmrec_core.training.behaviour import Behaviour
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import TokenisedPrompts, plan_rows, row_lengths
from llmrec_core.training.scoring import BATCH_TOKENS, _batches, _pack_members
from llmrec_core.workspace import write_json_atomic

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

GRAPH, INPUTS, TEXT = "model.onnx", "inputs.json", "model"
#: Candidates of one history in a row, and about how many tokens of them. A graph works out all pairs of a row's tokens,
#: also those that may not read each other: longer rows read the history less often and waste more pairs. On MiniLM and
#: prompts of 80 + 11 tokens 32 candidates are 1.25 times as fast as 10.
_MAX_TAILS, _MAX_TAIL_TOKENS = 32, 400
_INPUTS = {
    "input_ids": "int64 [rows, tokens]: ids of tokenizer.json, padded to the longest row",
    "position_ids": "int64 [rows, tokens]: 0, 1, 2 ...; the candidates of one history all go on where it ended",
    "segment": "int64 [rows, tokens]: -1 padding; 0 a history that several candidates share; 1, 2 ... the candidates. "
    "A prompt by itself: 1 throughout",
    "slots": "int64 [slots]: 1, 2 ... up to the most candidates in a row; for prompts by themselves [1]",
}


def require_onnx(name: str) -> Any:
    """The package ``name`` of the extra "onnx".

    Raises:
        InputError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Of the packages' own making, at their import.
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"the package {name} is not installed.", fix="Install the extra: pip install 'llmrec-studio[onnx]'."
        ) from None


class OnnxNetwork:
    """What a cross-encoder asks of its network, answered by a graph."""

    def __init__(self, graph: bytes, facts: ModelFacts, shared: bool) -> None:
        runtime = require_onnx("onnxruntime")
        tokenizer, pad_id = load_tokenizer(facts)
        self.graph, self.shared = graph, shared
        self.backbone = Backbone(cast(Any, _NoModel()), tokenizer, facts, pad_id, "onnx")
        self.causal = self.backbone.kind == "decoder"
        self.session_bytes = len(graph)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        # As many as the rest of this process was given.
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # The runtime raises many classes of its own for one thing: the graph is no good.
            raise ModelError(f"the ONNX graph cannot be loaded: {str(error)[:200]}.", fix=FIX) from None
        names = [given.name for given in self._session.get_inputs()]
        if names != list(_INPUTS):
            raise ModelError(f"the ONNX graph takes {', '.join(names)[:200]}.", fix=FIX)
        self.tasks = tuple(out.name for out in self._session.get_outputs())

    def predict(self, tokens: TokenisedPrompts, tasks: tuple[str, ...]) -> dict[str, npt.NDArray[np.float32]]:
        """Raw outputs of the named heads, float32 [n_prompts], as ``PromptNetwork.predict``."""
        prompts = np.arange(len(tokens), dtype=np.int64)
        length = max(1.0, float(tokens.tails.lengths.mean())) if len(tokens) else 1.0
        rows = plan_rows(tokens, prompts, max(1, min(_MAX_TAILS, int(_MAX_TAIL_TOKENS / length))))
        out = {task: np.empty(len(prompts), np.float32) for task in tasks}
        for chosen in _batches(row_lengths(tokens, prompts, rows), BATCH_TOKENS["cpu"]):
            batch_rows = [rows[i] for i in chosen]
            members = np.concatenate(batch_rows)
            packed = _pack_members(tokens, members, batch_rows, self.backbone.pad_id)
            given = {
                "input_ids": packed.input_ids.numpy(),
                "position_ids": packed.position_ids.numpy(),
                "segment": packed.segment.numpy().astype(np.int64),
                "slots": np.arange(1, packed.n_slots + 1, dtype=np.int64),
            }
            found = self._session.run(list(tasks), given)
            for task, values in zip(tasks, found, strict=True):
                out[task][members] = values[packed.row.numpy(), packed.slot.numpy()]
        return out


class _NoModel(nn.Module):
    """Stands where the weights would be: they are in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)


class OnnxCrossEncoder(CrossEncoderRecommender):
    """See the module. It cannot be trained, and shows no attention."""

    family: ClassVar[str] = "onnx-cross-encoder"

    @classmethod
    def around(cls, reader: CrossEncoderRecommender, graph: bytes) -> OnnxCrossEncoder:
        """``reader`` scored by ``graph``, which was exported from it."""
        network, _, _ = reader._fitted()
        child = cls(reader.run, reader.spec)
        child.__dict__.update({k: v for k, v in vars(reader).items() if k != "_network"})
        child._network = cast(PromptNetwork, OnnxNetwork(graph, network.backbone.facts, network.shared))
        return child

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, attention=False)

    def attention(self, query: Query, item_idx: int) -> Any:
        raise InputError("an ONNX model shows no attention.", fix="Explain the run that it was made from.")

    def save(self, folder: Path) -> None:
        network, renderer, dataset = self._fitted()
        theirs = cast(OnnxNetwork, network)
        (folder / GRAPH).write_bytes(theirs.graph)
        (folder / TEXT).mkdir()
        facts = network.backbone.facts
        write_json_atomic(folder / TEXT / "config.json", facts.config)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (facts.folder / name).exists():
                (folder / TEXT / name).write_bytes((facts.folder / name).read_bytes())
        outputs = dict.fromkeys(theirs.tasks, "float32 [rows, slots]: raw output of this head for each candidate")
        write_json_atomic(
            folder / INPUTS,
            {"graph": GRAPH, "tokenizer": f"{TEXT}/tokenizer.json", "inputs": _INPUTS, "outputs": outputs},
        )
        if self.behaviour is not None:
            (folder / "behaviour").mkdir()
            self.behaviour.save(folder / "behaviour")
        prompt = self.run.prompt.model_copy(update={"source": renderer.source})
        run = self.run.model_copy(update={"prompt": prompt, "recommender": self._as_recommender(self.spec)})
        write_head(
            folder,
            self.family,
            {
                "run": run.model_dump(mode="json"),
                "shared": network.shared,
                "catalogue_sha256": catalogue_sha256(dataset.item_ids),
                "dataset_fingerprint": dataset.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, ctx: FitContext) -> OnnxCrossEncoder:
        head = check_head(folder, cls.family, dataset.item_ids)
        run = read_run(head, folder)
        try:
            graph = (folder / GRAPH).read_bytes()
        except OSError:
            raise ModelError("its graph cannot be read.", where=str(folder / GRAPH), fix=FIX) from None
        part = run.recommender
        if not isinstance(part, CrossEncoderSpec):
            raise ModelError("its spec is of another family.", where=str(folder), fix=FIX)
        loaded = cls(run, part)
        facts = check_model_folder(folder / TEXT, weights=False)
        network = OnnxNetwork(graph, facts, bool(head.get("shared")))
        if set(network.tasks) != set(loaded.tasks):
            raise ModelError("its graph has other heads than its spec.", where=str(folder), fix=FIX)
        loaded._dataset = dataset
        loaded._network = cast(PromptNetwork, network)
        if part.behaviour is not None:
            loaded.behaviour = Behaviour.load(folder / "behaviour", part.behaviour, loaded.tasks, dataset, ctx)
        loaded._renderer = loaded._make_renderer(dataset, network.backbone)
        return loaded
