"""ONNX children: the same scores as PyTorch's, in packed rows and in plain prompts."""

import json

import numpy as np
import pytest
import torch
from compression.compression_cases import saved, scores

from llmrec_core.compression.children import compress
from llmrec_core.errors import InputError, ModelError
from llmrec_core.recommenders.onnx_encoder import OnnxCrossEncoder, OnnxNetwork, require_onnx
from llmrec_core.recommenders.reworked import network_of
from llmrec_core.specs.compression import Int8Spec, OnnxSpec

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def child(tiny_parent):
    recommender, split, ctx = tiny_parent
    return compress(recommender, OnnxSpec(), split, ctx)


def test_the_graph_scores_as_the_model_does(tiny_parent, child, tmp_path):
    recommender, split, ctx = tiny_parent
    assert np.abs(scores(child, split) - scores(recommender, split)).max() < 1e-4
    again = saved(child, split, ctx, tmp_path / "onnx")
    assert isinstance(again, OnnxCrossEncoder)
    assert np.array_equal(scores(again, split), scores(child, split))
    assert not again.capabilities.attention
    with pytest.raises(InputError, match="no cross-encoder of PyTorch"):
        compress(again, Int8Spec(), split, ctx)


def test_a_plain_prompt_is_scored_by_hand(tiny_parent, child, tmp_path):
    """As somebody without this project would, by what inputs.json says."""
    runtime = require_onnx("onnxruntime")
    recommender, split, ctx = tiny_parent
    saved(child, split, ctx, tmp_path / "onnx")
    told = json.loads((tmp_path / "onnx" / "inputs.json").read_text())
    session = runtime.InferenceSession(tmp_path / "onnx" / told["graph"], providers=["CPUExecutionProvider"])
    assert list(told["inputs"]) == [given.name for given in session.get_inputs()]
    network = network_of(recommender)
    rows = [network.backbone.encode([text])[0] for text in ("user likes the dark star", "no")]
    width = max(map(len, rows))
    ids, segment = np.zeros((2, width), np.int64), np.full((2, width), -1, np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], segment[number, : len(row)] = row, 1
    positions = np.tile(np.arange(width), (2, 1))
    found = session.run(
        ["click"], {"input_ids": ids, "position_ids": positions, "segment": segment, "slots": np.ones(1, np.int64)}
    )[0]
    with torch.inference_mode():
        expected = []
        for row in rows:
            batch = network.backbone.pad([row])
            expected.append(float(network.heads(network.backbone.pooled(**batch, how="mean"))["click"][0]))
    assert np.allclose(found[:, 0], expected, atol=1e-4)


def test_damaged_graphs_are_refused(child, monkeypatch):
    network = child._network
    with pytest.raises(ModelError, match="cannot be loaded"):
        OnnxNetwork(network.graph[: len(network.graph) // 2], network.backbone.facts, True)
    monkeypatch.setattr("llmrec_core.recommenders.onnx_encoder.importlib.import_module", _missing)
    with pytest.raises(InputError, match=r"llmrec-studio\[onnx\]"):
        require_onnx("onnxruntime")


def _missing(name):
    raise ImportError(name)
