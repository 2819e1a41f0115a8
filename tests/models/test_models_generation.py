"""Exact title probabilities, beam search, and free text, each against the plain way to get there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, write_tiny_gpt2, write_tiny_llama

from llmrec_core.models.generation import Beginning, TitleDecoder, Tree, log_softmax_within, write_text
from llmrec_core.models.label_words import language_head
from llmrec_core.models.loading import Backbone, load_backbone
from llmrec_core.models.trie import ROOT, Trie

END = 3
HEAD = [10, 11, 12, 13]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Backbone:
    return load_backbone(write_tiny_llama(tmp_path_factory.mktemp("models") / "llama"), trainable=False)


def some_titles(n: int = 40, seed: int = 0) -> list[list[int]]:
    """Titles with common beginnings, one twice, one that begins another."""
    rng = np.random.default_rng(seed)
    titles = [rng.integers(20, 26, rng.integers(1, 6)).tolist() for _ in range(n)]
    return [*titles, titles[0], [30], [30, 31], [40, 41, 42, 43, 44]]


def all_logits(backbone: Backbone, ids: list[int]) -> torch.Tensor:
    """Logits at every place of one text, the plain way, [n, n_words]."""
    head = language_head(backbone, range(len(VOCABULARY)))
    with torch.inference_mode():
        return head(backbone.model(input_ids=torch.tensor([ids])).last_hidden_state[0])


def by_hand(backbone: Backbone, titles: list[list[int]]) -> np.ndarray:
    """Log-probability of each title: a text of its own each, softmax over what some title allows at each place."""
    closed = [[*title, END] for title in titles]
    found = []
    for title in closed:
        logits = all_logits(backbone, HEAD + title)
        total = 0.0
        for place in range(len(title)):
            allowed = sorted({t[place] for t in closed if t[:place] == title[:place] and len(t) > place})
            row = logits[len(HEAD) + place - 1][allowed].double()
            total += float((row.log_softmax(0))[allowed.index(title[place])])
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize("packed", [True, False])
def test_log_probs_are_those_of_texts_read_one_by_one(backbone, packed):
    titles = some_titles(12)
    trie = Trie.of(titles, END)
    found = TitleDecoder(backbone, trie).log_probs(Beginning(backbone, HEAD, packed=packed), trie.leaf_of)
    np.testing.assert_allclose(found, by_hand(backbone, titles), atol=1e-4)
    distinct = np.unique(trie.leaf_of, return_index=True)[1]
    assert np.exp(found[distinct]).sum() == pytest.approx(1.0, abs=1e-5)
    assert found[0] == found[12], "equal titles"


def test_some_titles_cost_only_their_own_ways(backbone, monkeypatch):
    trie = Trie.of(some_titles(), END)
    decoder, beginning = TitleDecoder(backbone, trie), Beginning(backbone, HEAD, packed=True)
    whole = decoder.log_probs(beginning, trie.leaf_of)
    sizes: list[int] = []
    honest = Tree.extend
    monkeypatch.setattr(
        Tree, "extend", lambda self, tokens, parents: sizes.append(len(tokens)) or honest(self, tokens, parents)
    )
    np.testing.assert_allclose(decoder.log_probs(beginning, trie.leaf_of[[3, 5]]), whole[[3, 5]], atol=1e-5)
    # The last title is settled by its first token: nothing behind the beginning has to be read for it.
    before = sum(sizes)
    decoder.log_probs(beginning, trie.leaf_of[[-1]])
    assert sum(sizes) == before
    sizes.clear()
    decoder.log_probs(beginning, trie.leaf_of)
    deciding = np.flatnonzero((trie.n_children > 1) & (np.arange(trie.n_nodes) != ROOT))
    assert sum(sizes) == trie.ancestors(deciding).sum() - 1, "each node that decides, and the way to it, once"


def test_chunks_change_nothing(backbone, monkeypatch):
    from llmrec_core.models import generation

    trie = Trie.of(some_titles(), END)
    decoder, beginning = TitleDecoder(backbone, trie), Beginning(backbone, HEAD, packed=True)
    whole = decoder.log_probs(beginning, trie.leaf_of)
    monkeypatch.setattr(generation, "_CHUNK", 3)
    beginning = Beginning(backbone, HEAD, packed=True, at_once=2)
    np.testing.assert_allclose(decoder.log_probs(beginning, trie.leaf_of), whole, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_a_beam_as_wide_as_the_catalogue_is_exhaustive(backbone, packed):
    titles = some_titles()
    trie = Trie.of(titles, END)
    decoder, beginning = TitleDecoder(backbone, trie), Beginning(backbone, HEAD, packed=packed)
    values = decoder.log_probs(beginning, trie.leaf_of)
    leaves, first = np.unique(trie.leaf_of, return_index=True)
    order = np.argsort(-values[first], kind="stable")
    everything = trie.count_below(np.ones(len(titles), bool))
    found = decoder.search(beginning, len(titles), len(titles), everything)
    assert found.leaves.tolist() == leaves[order].tolist()
    np.testing.assert_allclose(found.log_probs, values[first][order], atol=1e-4)


def test_a_narrow_beam_finds_enough_and_says_true_probabilities(backbone):
    titles = some_titles()
    trie = Trie.of(titles, END)
    decoder, beginning = TitleDecoder(backbone, trie), Beginning(backbone, HEAD, packed=True)
    values = dict(zip(trie.leaf_of.tolist(), decoder.log_probs(beginning, trie.leaf_of), strict=True))
    allowed = np.ones(len(titles), bool)
    allowed[::2] = False
    for n_wanted in (1, 3, int(allowed.sum())):
        found = decoder.search(beginning, n_wanted, 1, trie.count_below(allowed))
        named = [t for leaf in found.leaves.tolist() for t in trie.titles_at(leaf).tolist() if allowed[t]]
        assert len(named) >= n_wanted
        for leaf, value in zip(found.leaves.tolist(), found.log_probs.tolist(), strict=True):
            assert value == pytest.approx(values[leaf], abs=1e-4)


def test_a_search_with_enough_beams_is_exact_and_reads_less_than_everything(backbone, monkeypatch):
    titles = some_titles(200, seed=1)
    trie = Trie.of(titles, END)
    decoder, beginning = TitleDecoder(backbone, trie), Beginning(backbone, HEAD, packed=True)
    values = decoder.log_probs(beginning, trie.leaf_of)
    decoder.head.model.lm_head.weight.mul_(40)  # a model that is sure of something
    sizes: list[int] = []
    honest = Tree.extend
    monkeypatch.setattr(
        Tree, "extend", lambda self, tokens, parents: sizes.append(len(tokens)) or honest(self, tokens, parents)
    )
    sure = decoder.log_probs(beginning, trie.leaf_of)
    whole = sum(sizes)
    sizes.clear()
    found = decoder.search(beginning, 3, 10_000, trie.n_titles)
    best = np.unique(trie.leaf_of[np.argsort(-sure)[:6]])
    assert set(found.leaves[:3].tolist()) <= set(best.tolist())
    np.testing.assert_allclose(found.log_probs[:3], np.sort(np.unique(sure))[::-1][:3], atol=1e-3)
    assert sum(sizes) < whole
    assert abs(values - sure).max() > 1


def test_text_is_the_most_probable_and_drawn_by_seed(backbone):
    head = language_head(backbone, range(len(VOCABULARY)))
    beginning = Beginning(backbone, HEAD, packed=True)
    greedy = write_text(beginning, head, max_tokens=8, stops=[END])
    ids = list(HEAD)
    while len(ids) < len(HEAD) + 8 and (token := int(all_logits(backbone, ids)[-1].argmax())) != END:
        ids.append(token)
    assert greedy == ids[len(HEAD) :]
    drawn = [write_text(beginning, head, max_tokens=8, stops=[], temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert write_text(beginning, head, max_tokens=8, stops=[], temperature=1.0, top_p=1e-9, seed=5) == write_text(
        beginning, head, max_tokens=8, stops=[]
    )
    assert write_text(beginning, head, max_tokens=5, stops=list(range(len(VOCABULARY)))) == []


def test_models_without_tree_masks_read_the_same(tmp_path):
    """GPT-2 counts positions by itself when they are not given, and has its own attention."""
    backbone = load_backbone(write_tiny_gpt2(tmp_path / "gpt2"), trainable=False)
    titles = some_titles(10)
    trie = Trie.of(titles, END)
    decoder = TitleDecoder(backbone, trie)
    both = [decoder.log_probs(Beginning(backbone, HEAD, packed=packed), trie.leaf_of) for packed in (True, False)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-4)


def test_softmax_within_groups():
    values = torch.tensor([0.0, 1.0, 5.0, 2.0], requires_grad=True)
    found = log_softmax_within(values, torch.tensor([0, 0, 1, 0]), 2)
    wanted = torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)
    assert torch.allclose(found[[0, 1, 3]], wanted)
    assert found[2] == 0
    (-found[0]).backward()
    assert torch.allclose(values.grad[[0, 1, 3]], wanted.exp() - torch.tensor([1.0, 0.0, 0.0]))
