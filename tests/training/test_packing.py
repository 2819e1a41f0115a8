"""Packing and the tree mask, against prompts read one by one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts.test_tokens import byte_pairs, word_pieces
from tiny_models import write_tiny_bert, write_tiny_llama
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors

from llmrec_core.contracts import RenderedPrompt, Span
from llmrec_core.errors import InputError
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import Backbone, load_backbone
from llmrec_core.training.network import PromptNetwork, can_share
from llmrec_core.training.packing import (
    HEAD,
    PADDING,
    Ragged,
    TokenisedPrompts,
    head_length,
    pack,
    plan_rows,
    pooling_weights,
    row_lengths,
    tokenise,
    tree_mask,
)


def _prompt(history: str, candidate: str) -> RenderedPrompt:
    text = f"{history} candidate : {candidate}"
    start = text.rindex(candidate)
    return RenderedPrompt(text, (Span(start, len(text), "candidate", "title"),), 0)


PROMPTS = [
    _prompt("user liked star wars , toy story", "blue film"),
    _prompt("user liked star wars , toy story", "the old house of love"),
    _prompt("user liked night", "red dark city"),
    _prompt("user liked star wars , toy story", "war"),
    _prompt("user liked night", "blue film"),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load_backbone(write_tiny_bert(tmp_path_factory.mktemp("bert") / "m"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_backbone(write_tiny_llama(tmp_path_factory.mktemp("llama") / "m"))


def _network(backbone, *, shared, pooling=None):
    heads = TaskHeads(backbone.hidden_size, ("click",), seed=3)
    return PromptNetwork(backbone, heads, pooling=pooling or backbone.default_pooling, shared=shared)


def test_heads_and_tails_are_the_prompt(bert):
    tokens = tokenise(bert, PROMPTS, shared=True)
    assert len(tokens.heads) == 2, "three prompts of one user share their head"
    for number, prompt in enumerate(PROMPTS):
        whole = bert.encode([prompt.text])[0]
        joined = [*tokens.heads[int(tokens.head_of[number])], *tokens.tails[int(tokens.tail_of[number])]]
        assert joined == whole
        tail = bert.tokenizer.decode(tokens.tails[int(tokens.tail_of[number])].tolist())
        assert tail == prompt.text[prompt.spans[0].start :]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_prompt_can_be_read_from_its_row(data):
    ids = st.integers(1, 9)
    heads = Ragged.of(data.draw(st.lists(st.lists(ids, max_size=5), min_size=1, max_size=4)))
    tails = Ragged.of(data.draw(st.lists(st.lists(ids, min_size=1, max_size=4), min_size=1, max_size=5)))
    numbers = st.tuples(st.integers(0, len(heads) - 1), st.integers(0, len(tails) - 1))
    which = np.array(data.draw(st.lists(numbers, min_size=1, max_size=12)), np.int64)
    tokens = TokenisedPrompts(heads, tails, which[:, 0], which[:, 1])
    prompts = np.array(data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=12)), np.int64)
    most = data.draw(st.integers(1, 4))
    rows = plan_rows(tokens, prompts, most)
    packed = pack(tokens, prompts, rows, pad_id=0)
    assert sorted(place for row in rows for place in row) == list(range(len(prompts)))
    assert packed.n_slots == max(map(len, rows), default=0)
    for row in rows:
        (head,) = {int(tokens.head_of[prompts[place]]) for place in row}
        assert len(row) <= (most if len(heads[head]) else 1)
    for place, prompt in enumerate(prompts):
        head, tail = heads[int(tokens.head_of[prompt])], tails[int(tokens.tail_of[prompt])]
        row, slot = int(packed.row[place]), int(packed.slot[place])
        at = [packed.segment[row] == HEAD, packed.segment[row] == slot + 1]
        assert [packed.input_ids[row][where].tolist() for where in at] == [head.tolist(), tail.tolist()]
        positions = torch.cat([packed.position_ids[row][where] for where in at])
        assert positions.tolist() == list(range(len(head) + len(tail)))
    assert packed.n_tokens == int(row_lengths(tokens, prompts, rows).sum())
    assert (packed.input_ids[packed.segment == PADDING] == 0).all()


def test_without_sharing_heads_are_empty(bert):
    tokens = tokenise(bert, PROMPTS, shared=False)
    assert tokens.heads.lengths.tolist() == [0]
    assert len(plan_rows(tokens, np.arange(5), 8)) == 5


@pytest.mark.parametrize(
    ("offsets", "cut", "expected"),
    [
        ([(0, 0), (0, 3), (4, 7), (0, 0)], 4, 2),
        ([(0, 0), (0, 3), (4, 7), (0, 0)], 5, 2),
        ([(0, 0), (0, 3), (0, 0)], 3, 2),
        ([(0, 3)], 3, 0),
    ],
    ids=["at a border", "inside a word", "nothing behind", "one token only"],
)
def test_where_a_head_ends(offsets, cut, expected):
    assert head_length(offsets, cut) == expected


def test_the_mask_by_hand():
    segment = torch.tensor([[0, 0, 1, 2, 2, -1]])
    positions = torch.tensor([[0, 1, 2, 2, 3, 0]])
    seen = tree_mask(segment, positions, torch.float32, causal=False)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    causal = tree_mask(segment, positions, torch.float32, causal=True)[0, 0] == 0
    assert causal.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_pooling_weights_by_hand(bert):
    tokens = tokenise(bert, PROMPTS[:2], shared=True)
    packed = pack(tokens, np.arange(2), plan_rows(tokens, np.arange(2), 8), 0)
    segment = packed.segment[0].tolist()
    n_head = segment.count(HEAD)
    assert segment[:n_head] == [HEAD] * n_head
    assert packed.position_ids[0, n_head] == n_head
    second = segment.index(2)
    assert packed.position_ids[0, second] == n_head, "every tail goes on where the head ended"
    mean, last = pooling_weights(packed, "mean"), pooling_weights(packed, "last")
    assert mean.shape == last.shape == (1, 2, packed.input_ids.shape[1])
    for slot in (0, 1):
        own = [place for place, value in enumerate(segment) if value == slot + 1]
        assert mean[0, slot].nonzero().flatten().tolist() == own
        assert mean[0, slot, own[0]] == pytest.approx(1 / len(own))
        assert last[0, slot].nonzero().flatten().tolist() == [own[-1]]


@pytest.mark.parametrize("shared", [True, False])
def test_bert_packed_equals_one_by_one(bert, shared):
    """One row a prompt and no neighbours is the plain reading; packing with others must not change it."""
    network = _network(bert, shared=shared)
    together = network.predict(tokenise(bert, PROMPTS, shared=shared), ("click",))["click"]
    alone = [network.predict(tokenise(bert, [p], shared=shared), ("click",))["click"][0] for p in PROMPTS]
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert len(set(np.round(together, 5))) == len(PROMPTS)


def test_unshared_bert_is_the_model_as_it_was_trained(bert):
    network = _network(bert, shared=False)
    scores = network.predict(tokenise(bert, PROMPTS, shared=False), ("click",))["click"]
    batch = bert.pad(bert.encode([p.text for p in PROMPTS]))
    with torch.inference_mode():
        bert.model.eval()
        plain = network.heads(bert.pooled(batch["input_ids"], batch["attention_mask"], "mean"))["click"]
    np.testing.assert_allclose(scores, plain.numpy(), atol=2e-6)


def test_a_decoder_shares_without_any_difference(llama):
    """Causal attention never looked ahead, so sharing the head computes the very same."""
    shared, single = (_network(llama, shared=s, pooling="last") for s in (True, False))
    left = shared.predict(tokenise(llama, PROMPTS, shared=True), ("click",))["click"]
    right = single.predict(tokenise(llama, PROMPTS, shared=False), ("click",))["click"]
    np.testing.assert_allclose(left, right, atol=2e-6)


def test_a_tail_does_not_see_its_neighbours(bert):
    network = _network(bert, shared=True)
    base = network.predict(tokenise(bert, PROMPTS[:2], shared=True), ("click",))["click"]
    other = network.predict(tokenise(bert, [PROMPTS[0], PROMPTS[3]], shared=True), ("click",))["click"]
    assert base[0] == pytest.approx(other[0], abs=2e-6)
    assert abs(base[1] - other[1]) > 1e-4


def test_wider_padding_changes_nothing(bert):
    network = _network(bert, shared=True).eval()
    tokens = tokenise(bert, PROMPTS, shared=True)
    rows = plan_rows(tokens, np.arange(5), 8)
    with torch.inference_mode():
        tight = network(pack(tokens, np.arange(5), rows, bert.pad_id))["click"]
        wide = network(pack(tokens, np.arange(5), rows, bert.pad_id, width=128))["click"]
    np.testing.assert_allclose(tight.numpy(), wide.numpy(), atol=2e-6)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40), st.integers(1, 5))
def test_every_prompt_stands_in_one_row(pairs, max_tails):
    prompts = [_prompt(f"liked {'night ' * head}", f"film {'war ' * tail}") for head, tail in pairs]
    tokens = _word_tokens(prompts)
    rows = plan_rows(tokens, np.arange(len(prompts)), max_tails)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(prompts)))
    for row in rows:
        assert len(row) <= max_tails
        assert len({int(tokens.head_of[i]) for i in row}) == 1
    packed = pack(tokens, np.arange(len(prompts)), rows, 0)
    assert packed.input_ids.shape[1] % 8 == 0
    assert packed.n_tokens == int((packed.segment != PADDING).sum())


def _word_tokens(prompts):
    from llmrec_core.training.packing import Ragged, TokenisedPrompts

    heads, tails = {}, {}
    head_of, tail_of = [], []
    for prompt in prompts:
        cut = prompt.spans[0].start
        head_of.append(heads.setdefault(prompt.text[:cut], len(heads)))
        tail_of.append(tails.setdefault(prompt.text[cut:], len(tails)))
    rows = [[len(word) for word in text.split()] for text in (*heads, *tails)]
    return TokenisedPrompts(
        Ragged.of(rows[: len(heads)]), Ragged.of(rows[len(heads) :]), np.array(head_of), np.array(tail_of)
    )


def test_attention_rows_sum_to_one_and_history_is_blind_to_the_candidate(bert):
    network = _network(bert, shared=True)
    tokens = tokenise(bert, PROMPTS[:1], shared=True)
    one = np.zeros(1, np.int64)
    found = network.attention(pack(tokens, one, [one], bert.pad_id))
    n_tokens = int(tokens.n_tokens[0])
    assert found.shape == (2, 4, n_tokens, n_tokens)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
    n_head = int(tokens.heads.lengths[0])
    assert found[:, :, :n_head, n_head:].max() == 0
    assert found[:, :, n_head:, :n_head].min() > 0


def test_who_can_share(bert, llama):
    assert can_share(bert, "mean")
    assert can_share(llama, "last")
    assert not can_share(bert, "cls"), "the first token stands in the head and has read no candidate"


def test_a_prompt_too_long_is_refused(bert):
    with pytest.raises(InputError, match="tokens"):
        tokenise(bert, [_prompt("star " * 600, "film")], shared=True)


# ---- heads and tails read once each ----------------------------------------------------------------------------------

LETTERS = st.text(alphabet="abcj雨é\u0301 .-()5\t\n\u00a0\u200b\u3000\x00", max_size=8)
SEAMS = st.sampled_from([" ", "", "  ", "\n", ": ", " \t ", "[MASK] ", " [MASK]"])


def _tokenizer(kind: str) -> Tokenizer:
    tokenizer = byte_pairs() if kind.startswith("bytes") else word_pieces()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    mask = AddedToken("[MASK]", special=True, lstrip=kind == "pieces", rstrip=kind == "bytes, greedy mask")
    tokenizer.add_special_tokens([mask])
    if kind == "bytes, digits":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.post_processor = processors.RobertaProcessing(("b", 65), ("a", 64), add_prefix_space=True)
    return tokenizer


def _reader(kind: str) -> Backbone:
    facts = SimpleNamespace(max_tokens=500)
    return Backbone(model=None, tokenizer=_tokenizer(kind), facts=facts, pad_id=0, attention="eager")


READERS = {kind: _reader(kind) for kind in ("pieces", "bytes", "bytes, digits", "bytes, greedy mask")}


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(READERS)),
    parts=st.lists(st.tuples(LETTERS, SEAMS, LETTERS, LETTERS), min_size=1, max_size=4),
)
def test_heads_and_tails_read_apart_are_those_of_whole_prompts(kind, parts):
    reader = READERS[kind]
    assert (reader.around is None) == (kind == "bytes, greedy mask"), "it would take the space of the tail"
    # Every head with every tail, so that each is read once for many prompts.
    prompts = [
        RenderedPrompt(text, (Span(len(text) - len(tail), len(text), "candidate", "title"),) if tail else (), 0)
        for head, seam, _, _ in parts
        for _, _, title, end in parts
        for tail in [f"{title}{end}"]
        for text in [f"a{head}{seam}{tail}"]
    ]
    found = tokenise(reader, prompts, shared=True)
    whole = replace(reader)
    whole.around = None
    expected = tokenise(whole, prompts, shared=True)
    for name in ("heads", "tails"):
        assert getattr(found, name).flat.tolist() == getattr(expected, name).flat.tolist()
        assert getattr(found, name).starts.tolist() == getattr(expected, name).starts.tolist()
    assert found.head_of.tolist() == expected.head_of.tolist()
    assert found.tail_of.tolist() == expected.tail_of.tolist()


def test_what_stands_in_many_prompts_is_read_once(bert):
    read = []
    listed = Tokenizer.encode_batch

    class Listening:
        def __getattr__(self, name):
            return getattr(bert.tokenizer, name)

        def encode_batch(self, texts, **given):
            read.extend(texts)
            return listed(bert.tokenizer, texts, **given)

    tokenise(replace(bert, tokenizer=Listening()), PROMPTS, shared=True)
    assert sorted(read) == sorted({f" {prompt.text[prompt.spans[0].start :]}" for prompt in PROMPTS})
