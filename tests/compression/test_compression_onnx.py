"""ONNX children: the same scores as PyTorch's, in packed rows and in plain prompts."""

import copy
import json

import numpy as np
import pytest
import torch
from compression.compression_cases import saved, scores
from models.test_models_loading import write_tiny
from tiny_models import write_tiny_llama
from training.training_cases import fit, planted_run, planted_split

from llmrec_core.compression import onnx_export
from llmrec_core.compression.children import compress
from llmrec_core.contracts import FitContext
from llmrec_core.errors import InputError, ModelError
from llmrec_core.recommenders.onnx_encoder import OnnxCrossEncoder, OnnxNetwork, require_onnx
from llmrec_core.recommenders.reworked import network_of
from llmrec_core.specs import CrossEncoderSpec
from llmrec_core.specs.compression import Int8Spec, OnnxSpec
from llmrec_core.training.packing import pack, tokenise

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


def test_a_graph_in_eight_bits_is_smaller_and_orders_alike(tiny_parent, child, tmp_path):
    recommender, split, _ = tiny_parent
    network, path = child._network, tmp_path / "model.onnx"
    path.write_bytes(network.graph)
    onnx_export._round(path)
    small = OnnxNetwork(path.read_bytes(), network.backbone.facts, network.shared)
    assert len(small.graph) < 0.8 * len(network.graph)
    right = scores(recommender, split)
    other = copy.copy(child)
    other._network = small
    error = np.abs(scores(other, split) - right).max()
    assert 0 < error < 0.2 * right.std()


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


def answering(folder, write):
    """A model that answers in words as it came, on a small split."""
    write(folder / "model")
    split, run = planted_split(n_users=6), planted_run(folder)
    words = {"model": str(folder / "model"), "head": "label-words", "tuning": {"method": "none"}}
    prompt = run.prompt.model_copy(update={"template": "yes-no"})
    spec = CrossEncoderSpec.model_validate(words)
    return fit(run.model_copy(update={"recommender": spec, "prompt": prompt}), split, folder), split


def test_a_decoder_answers_in_words_from_its_graph(tmp_path):
    """It reads only backwards, and answers at its last token."""
    parent, split = answering(tmp_path, lambda folder: write_tiny_llama(folder, seed=1, n_layers=1))
    ctx = FitContext(workspace_models=tmp_path)
    child = saved(compress(parent, OnnxSpec(), split, ctx), split, ctx, tmp_path / "onnx")
    right = scores(parent, split)
    assert np.abs(scores(child, split) - right).max() < 1e-3 * right.std()


def test_an_encoder_answers_at_its_mask_before_it_becomes_a_graph(tmp_path):
    """What is exported, run by PyTorch: an export takes seconds, and pooling is all that is new here."""
    parent, split = answering(tmp_path, lambda folder: write_tiny(model_type="bert", folder=folder))
    network = network_of(parent)
    pairs = [(query, item) for query in split.queries("valid").queries[:2] for item in range(5)]
    tokens = tokenise(network.backbone, parent.renderer.render_many(pairs), shared=False)
    packed = pack(tokens, np.arange(10), [np.array([i]) for i in range(10)], network.backbone.pad_id)
    with torch.inference_mode():
        found = onnx_export._Graph(network)(packed.input_ids, packed.position_ids, packed.segment, torch.tensor([1]))
    right = network.predict(tokens, ("click",))["click"]
    assert np.abs(found[0][:, 0].numpy() - right).max() < 0.01 * right.std()


def test_what_has_no_graph_is_refused_with_a_way_out(tiny_parent, tmp_path, monkeypatch):
    recommender, split, ctx = tiny_parent
    rounded = compress(recommender, Int8Spec(), split, ctx)
    with pytest.raises(InputError, match=r"whole-number weights already.*Compress the run that it was made from"):
        compress(rounded, OnnxSpec(), split, ctx)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "_MAX_BYTES", 1000)
        with pytest.raises(InputError, match=r"one ONNX file holds.*take out layers first"):
            compress(recommender, OnnxSpec(), split, ctx)
    monkeypatch.setattr(onnx_export, "reads_trees", lambda _: False)
    with pytest.raises(InputError, match="models of the kind bert have no ONNX form"):
        compress(recommender, OnnxSpec(), split, ctx)


def test_damaged_graphs_are_refused(child, monkeypatch):
    network = child._network
    with pytest.raises(ModelError, match="cannot be loaded"):
        OnnxNetwork(network.graph[: len(network.graph) // 2], network.backbone.facts, True)
    monkeypatch.setattr("llmrec_core.recommenders.onnx_encoder.importlib.import_module", _missing)
    with pytest.raises(InputError, match=r"llmrec-studio\[onnx\]"):
        require_onnx("onnxruntime")


def _missing(name):
    raise ImportError(name)
