"""Titles behind many histories in one forward: the probabilities of histories read one by one, however much fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_tiny_gpt2, write_tiny_llama

from llmrec_core.errors import RunFailedError
from llmrec_core.models.generation import TitleDecoder
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.trie import Trie
from llmrec_core.models.tuning import apply_tuning
from llmrec_core.specs import TuningMethod, TuningSpec
from llmrec_core.training import scoring, title_trees
from llmrec_core.training.generative import TitleQuestions, WritingNetwork
from llmrec_core.training.network import can_share

END = 3
HEADS = [[10, 11, 12, 13], [14], [10, 11, 12, 13, 14, 15, 16, 17, 18], [12, 19], [15, 11, 12]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writers")
    return {"llama": write_tiny_llama(root / "llama"), "gpt2": write_tiny_gpt2(root / "gpt2")}


def network_of(folder: Path, *, method: TuningMethod = "none", packed: bool | None = None) -> WritingNetwork:
    backbone = load_backbone(folder)
    apply_tuning(backbone.model, TuningSpec(method=method), seed=1)
    rng = np.random.default_rng(0)
    titles = [rng.integers(20, 26, rng.integers(1, 6)).tolist() for _ in range(40)]
    trie = Trie.of([*titles, titles[0], [30], [30, 31], [40, 41, 42, 43, 44]], END)
    decoder = TitleDecoder(backbone, trie)
    decoder.bias = torch.linspace(-1, 1, trie.n_nodes)
    return WritingNetwork(backbone, decoder, packed=can_share(backbone, "last") if packed is None else packed).eval()


def questions_of(network: WritingNetwork) -> TitleQuestions:
    """Several titles behind most heads, none behind one, and one that is settled by its first token."""
    asked = [(0, [0, 5, 9, 43]), (1, [43]), (3, [*range(44)]), (2, [7, 7]), (4, [41, 42, 2])]
    head_of = np.concatenate([[head] * len(titles) for head, titles in asked])
    leaves = network.decoder.trie.leaf_of[np.concatenate([titles for _, titles in asked])]
    order = np.random.default_rng(1).permutation(len(leaves))
    return TitleQuestions(HEADS, head_of[order], leaves[order], np.zeros(len(leaves), np.float32))


def one_by_one(network: WritingNetwork, asked: TitleQuestions) -> np.ndarray:
    found = np.empty(len(asked.leaves))
    for number, head in enumerate(asked.heads):
        rows = np.flatnonzero(asked.head_of == number)
        found[rows] = network.decoder.log_probs(network.read(head), asked.leaves[rows])
    return found


def log_probs(network: WritingNetwork, asked: TitleQuestions) -> np.ndarray:
    return network.log_probs(asked.heads, asked.head_of, asked.leaves)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["none", "lora", "prefix", "prompt"])
@torch.inference_mode()
def test_many_heads_at_once_give_the_probabilities_of_heads_one_by_one(folders, name, method):
    network = network_of(folders[name], method=method)
    for parameter in network.encoder.parameters():
        if parameter.requires_grad:  # what is trained begins by doing nothing
            parameter.add_(0.05)
    asked = questions_of(network)
    plain = one_by_one(network, asked)
    np.testing.assert_allclose(log_probs(network, asked), plain, atol=2e-5)
    assert np.ptp(plain) > 1


@pytest.mark.parametrize("packed", [True, False])
def test_all_heads_and_trees_stand_in_one_row_where_the_model_takes_blocks(folders, monkeypatch, packed):
    network = network_of(folders["llama"], packed=packed)
    asked, read, widths = questions_of(network), network.encoder.forward, []
    plain = one_by_one(network, asked)

    def counted(*args, **options):
        widths.append(options["input_ids"].shape)
        return read(*args, **options)

    monkeypatch.setattr(network.encoder, "forward", counted)
    np.testing.assert_allclose(log_probs(network, asked), plain, atol=2e-5)
    if not packed:
        assert len(widths) > len(HEADS)
        return
    decoder = network.decoder
    nodes = [decoder.to_read(decoder.deciding(asked.leaves[asked.head_of == head])) for head in range(5)]
    assert widths == [(1, sum(map(len, HEADS)) + sum(map(len, nodes)))], "and not a token more"
    assert network.encoder.config._attn_implementation == "eager"


@pytest.mark.parametrize(("budget", "most", "states"), [(1, 512, 256), (60, 512, 3), (4096, 4, 1), (30, 2, 256)])
def test_neither_budget_nor_limits_change_probabilities(folders, monkeypatch, budget, most, states):
    network = network_of(folders["llama"])
    asked = questions_of(network)
    whole = log_probs(network, asked)
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", budget)
    monkeypatch.setattr(title_trees, "MOST", most)
    monkeypatch.setattr(title_trees, "_STATES", states)
    np.testing.assert_allclose(log_probs(network, asked), whole, atol=2e-5)


def test_without_questions_nothing_is_read(folders, monkeypatch):
    network = network_of(folders["llama"])
    monkeypatch.setattr(network.encoder, "forward", lambda **_: pytest.fail("read"))
    assert network.log_probs([], np.empty(0, np.int64), np.empty(0, np.int64)).shape == (0,)


# ---- memory that runs out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_what_does_not_fit_is_read_in_smaller_parts(folders, monkeypatch, packed):
    network = network_of(folders["llama"], packed=packed)
    asked = questions_of(network)
    whole = network.predict(asked, ("rank",))["rank"]
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 256)
    read, widths = network.encoder.forward, []

    def small_memory(*args, **options):
        widths.append(options["input_ids"].numel())
        if widths[-1] > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(*args, **options)

    monkeypatch.setattr(network.encoder, "forward", small_memory)
    network.train()
    np.testing.assert_allclose(network.predict(asked, ("rank",))["rank"], whole, atol=2e-5)
    assert network.training
    assert network.encoder.config._attn_implementation == "eager"
    assert max(widths) > 30
    assert scoring.batch_tokens(network) < 256
    n_before = len(widths)
    np.testing.assert_allclose(network.predict(asked, ("rank",))["rank"], whole, atol=2e-5)
    assert max(widths[n_before:]) <= 30, "the next scoring begins with what fits"


def test_answers_that_are_there_are_not_asked_again(folders, monkeypatch):
    network = network_of(folders["llama"])
    asked = questions_of(network)
    whole = log_probs(network, asked)
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 64)
    honest, rows = title_trees.log_probs, []

    def second_fails(network, heads, head_of, leaves, left):
        for number, (found, values) in enumerate(honest(network, heads, head_of, leaves, left)):
            if number == 1 and not rows[1:]:
                raise MemoryError
            rows.append(found)
            yield found, values

    monkeypatch.setattr(title_trees, "log_probs", second_fails)
    np.testing.assert_allclose(log_probs(network, asked), whole, atol=2e-5)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(whole)))


@pytest.mark.parametrize(
    ("fault", "kind", "said", "n_tries"),
    [
        (RuntimeError("CUDA error: out of memory"), RunFailedError, r"prompt\.max_tokens: .*memory is too small", 7),
        (RuntimeError("another fault"), RuntimeError, "^another fault$", 1),
    ],
)
def test_scoring_that_cannot_go_on_leaves_the_model_as_it_was(folders, monkeypatch, fault, kind, said, n_tries):
    network = network_of(folders["llama"])
    tries = []

    def fails(*_, **__):
        tries.append(1)
        raise fault

    monkeypatch.setattr(network.encoder, "forward", fails)
    network.train()
    with pytest.raises(kind, match=said):
        network.predict(questions_of(network), ("rank",))
    assert len(tries) == n_tries
    assert network.training
    assert scoring.batch_tokens(network) == 4096
    assert network.encoder.config._attn_implementation == "eager"
