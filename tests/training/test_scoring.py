"""Scoring by blocks of one unpadded row, against the tree mask of training and against whole prompts one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bf16_products import needs_bf16_products
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel

from llmrec_core.errors import RunFailedError
from llmrec_core.models import laid_out
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import Backbone
from llmrec_core.models.tuning_soft import add_soft_states
from llmrec_core.training import scoring
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import Ragged, TokenisedPrompts, pack, plan_rows
from llmrec_core.training.row_attention import Questions

ENCODERS = ("bert", "electra")
DECODERS = ("gpt2", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3")
_N_WORDS = 50


def _network(model_type: str, *, shared: bool = True, pooling: str | None = None, autocast=None) -> PromptNetwork:
    torch.manual_seed(5)
    sizes = {"vocab_size": _N_WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if model_type == "electra":
        sizes["embedding_size"] = 32
    if model_type != "gpt2":
        sizes |= {"intermediate_size": 48, "max_position_embeddings": 256}
    if model_type in DECODERS[1:]:
        sizes |= {"num_key_value_heads": 2, "sliding_window": None, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **sizes, attn_implementation="eager")
    with torch.random.fork_rng():
        model = AutoModel.from_config(config).eval()
        for weight in model.parameters():
            # Wider than at the start of a training: attention that is nearly uniform would hide who is read.
            torch.nn.init.normal_(weight, std=0.25) if weight.dim() > 1 else None
    model.config.use_cache = False
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    kind = "encoder" if model_type in ENCODERS else "decoder"
    facts = SimpleNamespace(kind=kind, model_type=model_type, config={}, hidden_size=32)
    backbone = Backbone(model=model, tokenizer=None, facts=facts, pad_id=0, attention="eager")
    heads = TaskHeads(32, ("click", "rank"), seed=3)
    how = pooling or ("mean" if kind == "encoder" else "last")
    return PromptNetwork(backbone, heads, pooling=how, shared=shared, autocast=autocast).eval()


def _tokens(sizes: list[tuple[int, list[int]]], seed: int = 0) -> TokenisedPrompts:
    """Random prompts: for each head its length and those of its tails, asked for in a mixed order."""
    rng = np.random.default_rng(seed)
    heads = [rng.integers(4, _N_WORDS, n).tolist() for n, _ in sizes]
    tails = [rng.integers(4, _N_WORDS, n).tolist() for _, row in sizes for n in row]
    head_of = np.repeat(np.arange(len(sizes)), [len(row) for _, row in sizes])
    order = rng.permutation(len(tails))
    return TokenisedPrompts(Ragged.of(heads), Ragged.of(tails), head_of[order], np.arange(len(tails))[order])


TOKENS = _tokens([(9, [3, 5, 5, 1, 4]), (2, [6]), (14, [2, 2, 2])])
#: Times the pairs of blocks that rows may meet: never by rows, always.
BLOCKS: dict[torch.dtype, float] = {}
ROWS = {torch.float32: 1e9, torch.bfloat16: 1e9}


@pytest.fixture(autouse=True, params=["blocks", "rows"])
def way(request, monkeypatch):
    """Attention goes by blocks or by rows, which is chosen by how many candidates a history has."""
    monkeypatch.setattr(scoring, "_MORE_PAIRS", BLOCKS if request.param == "blocks" else ROWS)
    return request.param


@torch.inference_mode()
def _by_mask(network: PromptNetwork, tokens: TokenisedPrompts) -> np.ndarray:
    """The forward of training: the definition of what a cut prompt means."""
    prompts = np.arange(len(tokens))
    packed = pack(tokens, prompts, plan_rows(tokens, prompts, 3), 0)
    return network(packed)["click"].numpy()


@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_blocks_equal_the_tree_mask(model_type):
    network = _network(model_type)
    scores = network.predict(TOKENS, ("click", "rank"))
    np.testing.assert_allclose(scores["click"], _by_mask(network, TOKENS), atol=1e-5)
    assert np.ptp(scores["click"]) > 0.01, "prompts differ, or nothing is proven"
    assert np.abs(scores["rank"] - scores["click"]).max() > 0.01
    assert network.encoder.config._attn_implementation == "eager"


def test_few_candidates_go_by_rows_and_many_by_blocks(monkeypatch):
    monkeypatch.undo()
    network = _network("bert")
    few, many = _tokens([(30, [4, 4]), (20, [3])]), _tokens([(30, [6] * 20)])
    for tokens, kind in ((few, Questions), (many, tuple)):
        (groups,) = scoring.plan_batches(tokens, 10_000)
        assert isinstance(scoring.lay_out(tokens, groups, network).blocks, kind)
    learned = _network("bert")
    add_soft_states(learned.encoder, 3, 0, deep=True)
    (groups,) = scoring.plan_batches(few, 10_000)
    assert isinstance(scoring.lay_out(few, groups, learned).blocks, tuple), "trained states belong to blocks"


def test_rows_are_filled_up_in_bf16(way):
    network = _network("bert", autocast=torch.bfloat16)
    plain = _network("bert").predict(TOKENS, ("click",))["click"]
    np.testing.assert_allclose(network.predict(TOKENS, ("click",))["click"], plain, atol=0.03)
    (groups,) = scoring.plan_batches(TOKENS, 10_000)
    batch = scoring.lay_out(TOKENS, groups, network)
    # Fifty-five tokens.
    assert batch.input_ids.shape == batch.position_ids.shape == (1, {"rows": 64, "blocks": 55}[way])
    assert scoring.n_flat_tokens(network, TOKENS) == batch.input_ids.shape[1]


@pytest.mark.parametrize("model_type", DECODERS)
@torch.inference_mode()
def test_a_decoder_says_what_whole_prompts_say(model_type):
    """Each prompt alone, through the model as it came, without any mask of ours."""
    network = _network(model_type)
    scores = network.predict(TOKENS, ("click",))["click"]
    for place, (head, tail) in enumerate(zip(TOKENS.head_of, TOKENS.tail_of, strict=True)):
        ids = torch.tensor([[*TOKENS.heads[head], *TOKENS.tails[tail]]])
        plain = network.heads(network.encoder(input_ids=ids).last_hidden_state[:, -1])["click"]
        assert scores[place] == pytest.approx(float(plain), abs=1e-4)


@pytest.mark.parametrize(("model_type", "pooling"), [("bert", "cls"), ("bert", "mean"), ("electra", "mean")])
@torch.inference_mode()
def test_an_encoder_without_shared_heads_reads_whole_prompts(model_type, pooling):
    network = _network(model_type, shared=False, pooling=pooling)
    tokens = _tokens([(0, [7, 3, 12, 7])])
    scores = network.predict(tokens, ("click",))["click"]
    for place, tail in enumerate(tokens.tail_of):
        hidden = network.encoder(input_ids=torch.tensor([tokens.tails[tail].tolist()])).last_hidden_state[0]
        vector = hidden[:1] if pooling == "cls" else hidden.mean(0, keepdim=True)
        assert scores[place] == pytest.approx(float(network.heads(vector)["click"]), abs=1e-5)


@pytest.mark.parametrize("budget", [1, 12, 40, 10_000])
def test_neither_the_budget_nor_the_blocks_change_scores(budget, monkeypatch):
    network = _network("llama")
    whole = network.predict(TOKENS, ("click",))["click"]
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": budget})
    monkeypatch.setattr(scoring, "_BLOCK_CELLS", {"cpu": budget})
    np.testing.assert_allclose(network.predict(TOKENS, ("click",))["click"], whole, atol=1e-6)


@pytest.mark.parametrize("trees", [True, False])
def test_out_of_memory_halves_the_batches_and_goes_on(trees, monkeypatch):
    """What was scored before is kept, attention is put back, and kept states of the larger batches are let go."""
    network = _network("llama")
    whole = network.predict(TOKENS, ("click", "rank"))
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": 48})
    monkeypatch.setattr(scoring, "reads_trees", lambda _: trees)
    read, widths = network.encoder.forward, []

    def small_memory(input_ids, **options):
        widths.append(input_ids.numel())
        if widths[-1] > 25:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(input_ids=input_ids, **options)

    monkeypatch.setattr(network.encoder, "forward", small_memory)
    network.kept = SimpleNamespace(tokens=None)
    found = network.predict(TOKENS, ("click", "rank"))
    for task, scores in whole.items():
        np.testing.assert_allclose(found[task], scores, atol=1e-6)
    assert network.kept is None
    assert scoring.batch_tokens(network) == 24
    assert network.encoder.config._attn_implementation == "eager"
    failed = [width for width in widths if width > 25]
    assert len(failed) == 1, "the next scoring begins with what fits"
    network.predict(TOKENS, ("click",))
    assert max(widths[widths.index(failed[0]) + 1 :]) <= 25


def test_prompts_that_were_scored_before_memory_ran_out_are_not_read_again(monkeypatch):
    network = _network("llama")
    whole = network.predict(TOKENS, ("click",))["click"]
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": 24})
    lay_out, asked = scoring.lay_out, []

    def third_fails(tokens, groups, network):
        asked.append(sum(len(group) for group in groups))
        if len(asked) == 3:
            raise MemoryError
        return lay_out(tokens, groups, network)

    monkeypatch.setattr(scoring, "lay_out", third_fails)
    np.testing.assert_allclose(network.predict(TOKENS, ("click",))["click"], whole, atol=1e-6)
    assert sum(asked[:2]) + sum(asked[3:]) == len(TOKENS)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (RuntimeError("MPS backend out of memory"), RunFailedError, r"prompt\.max_tokens: .*memory"),
        (RuntimeError("another fault"), RuntimeError, "^another fault$"),
    ],
)
def test_scoring_that_cannot_go_on_leaves_the_model_as_it_was(fault, kind, said, monkeypatch):
    network = _network("bert")
    tries = []

    def fails(*_, **__):
        tries.append(1)
        raise fault

    monkeypatch.setattr(network.encoder, "forward", fails)
    with pytest.raises(kind, match=said):
        network.predict(TOKENS, ("click",))
    assert len(tries) == (7 if kind is RunFailedError else 1)
    assert scoring.batch_tokens(network) == 4096
    assert network.encoder.config._attn_implementation == "eager"


def test_the_mask_token_is_pooled():
    network = _network("bert", pooling="mask")
    network.mask_id = 3
    tokens = TokenisedPrompts(
        Ragged.of([[5, 3, 6]]), Ragged.of([[7, 3, 8], [3, 9, 3, 10], [11, 12]]), np.zeros(3, np.int64), np.arange(3)
    )
    scores = network.predict(tokens, ("click",))["click"]
    np.testing.assert_allclose(scores, _by_mask(network, tokens), atol=1e-5)
    assert scores[2] == pytest.approx(network.heads.heads["click"].bias.item(), abs=1e-7), "no mask in its tail"


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("deep", [True, False], ids=["prefix", "prompt"])
def test_learned_states_are_read_by_blocks_too(model_type, deep):
    network = _network(model_type)
    without = network.predict(TOKENS, ("click",))["click"]
    add_soft_states(network.encoder, 3, 0, deep=deep)
    scores = network.predict(TOKENS, ("click",))["click"]
    np.testing.assert_allclose(scores, _by_mask(network, TOKENS), atol=1e-5)
    assert np.abs(scores - without).max() > 1e-3


@torch.inference_mode()
def test_half_precision_stays_close():
    full, half = _network("llama"), _network("llama", autocast=torch.bfloat16)
    left, right = (network.predict(TOKENS, ("click",))["click"] for network in (full, half))
    assert 0 < np.abs(left - right).max() < 0.05 * np.abs(left).max()


@torch.inference_mode()
def test_what_was_given_before_the_row_is_read_by_all(monkeypatch):
    """Trained prefixes come as keys and values without tokens: as if they stood in every head."""
    monkeypatch.setattr(scoring, "_MORE_PAIRS", BLOCKS)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, 6, 8) for n in (4, 2, 2))
    given_k, given_v = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    network = _network("llama")
    tokens = TokenisedPrompts(Ragged.of([[4, 5]]), Ragged.of([[6], [7, 8, 9]]), np.zeros(2, np.int64), np.arange(2))
    batch = scoring.lay_out(tokens, [np.arange(2)], network)
    assert batch.input_ids.tolist() == [[4, 5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 4]]
    found, _ = scoring.block_attention(
        torch.nn.Identity(), query, torch.cat([given_k, key], 2), torch.cat([given_v, value], 2), None,
        blocks=batch.blocks,
    )  # fmt: skip
    # The row: two tokens of the head, a tail of one, a tail of three. What each token reads of the row:
    for own, seen in [(1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 3]), (5, [0, 1, 3, 4, 5])]:
        for head in range(4):
            keys = torch.cat([given_k[0, head // 2], key[0, head // 2, seen]])
            values = torch.cat([given_v[0, head // 2], value[0, head // 2, seen]])
            weights = (query[0, head, own] @ keys.T / 8**0.5).softmax(-1)
            torch.testing.assert_close(found[0, own, head], weights @ values, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=8)), min_size=1, max_size=6),
    st.integers(1, 60),
)
def test_every_prompt_is_in_one_batch_within_the_budget(sizes, budget):
    tokens = _tokens(sizes)
    batches = list(scoring.plan_batches(tokens, budget))
    members = np.concatenate([group for batch in batches for group in batch])
    assert sorted(members.tolist()) == list(range(len(tokens)))
    for batch in batches:
        used = 0
        for group in batch:
            assert len(set(tokens.head_of[group])) == 1
            lengths = tokens.tails.lengths[tokens.tail_of[group]]
            assert (np.diff(lengths) >= 0).all()
            used += int(tokens.heads.lengths[tokens.head_of[group[0]]] + lengths.sum())
        assert used <= budget or (len(batch) == 1 and len(batch[0]) == 1)
    # A head whose tails fit into one batch is read once.
    for head, (n_head, tails) in enumerate(sizes):
        if n_head + sum(tails) <= budget:
            assert sum(tokens.head_of[group[0]] == head for batch in batches for group in batch) == 1


def test_nothing_to_score():
    empty = TokenisedPrompts(Ragged.of([]), Ragged.of([]), np.empty(0, np.int64), np.empty(0, np.int64))
    assert _network("bert").predict(empty, ("click",))["click"].shape == (0,)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_the_last_layer_feeds_tails_forward_and_nothing_else(model_type, monkeypatch):
    network = _network(model_type)
    seen: list[list[int]] = [[], []]
    for layer, sizes in zip(network.encoder.encoder.layer, seen, strict=True):
        layer.intermediate.register_forward_hook(lambda part, given, out, sizes=sizes: sizes.append(given[0].shape[1]))
    scores = network.predict(TOKENS, ("click",))["click"]
    n_tails = int(TOKENS.tails.lengths[TOKENS.tail_of].sum())
    assert (sum(seen[0]), sum(seen[1])) == (n_tails + int(TOKENS.heads.lengths.sum()), n_tails)
    monkeypatch.setattr(scoring, "LAST_LAYERS", frozenset())
    np.testing.assert_allclose(scores, network.predict(TOKENS, ("click",))["click"], atol=1e-6)
    assert sum(seen[1]) == n_tails + sum(seen[0]) / 2


def _bfloat16(model_type: str, monkeypatch) -> PromptNetwork:
    """A network whose weights are laid out when it scores, on any processor."""
    monkeypatch.setattr(laid_out, "cpu_bf16_unit", lambda: "AVX-512 BF16")
    monkeypatch.setattr(laid_out, "LEAST_TOKENS", 1)
    network = _network(model_type)
    network.encoder.to(torch.bfloat16)
    return network


@needs_bf16_products
@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_laid_out_weights_score_the_same_and_new_ones_are_seen(model_type, trees, monkeypatch):
    network = _bfloat16(model_type, monkeypatch)
    monkeypatch.setattr(scoring, "reads_trees", lambda _: trees)
    made: list[int] = []
    in_order = laid_out._in_order
    monkeypatch.setattr(laid_out, "_in_order", lambda weight: made.append(1) or in_order(weight))

    def both() -> np.ndarray:
        """Scores, which are those of plain products."""
        made.clear()
        found = network.predict(TOKENS, ("click",))["click"]
        n_made = len(made)
        with monkeypatch.context() as patch:
            patch.setattr(laid_out, "LEAST_TOKENS", 1000)
            plain = network.predict(TOKENS, ("click",))["click"]
        assert len(made) == n_made > 0
        # Eight bits of precision, through two layers.
        np.testing.assert_allclose(found, plain, atol=0.05 * np.ptp(plain))
        return found

    before = both()
    with torch.no_grad():
        for weight in network.encoder.parameters():
            weight.mul_(0.5)
    assert np.abs(both() - before).max() > 0.1 * np.ptp(before)
    assert not any("forward" in vars(part) for part in network.encoder.modules())


@needs_bf16_products
def test_where_memory_ran_out_no_weights_are_laid_out_again(monkeypatch):
    network = _bfloat16("bert", monkeypatch)
    whole = network.predict(TOKENS, ("click",))["click"]
    read, widths, laid = network.encoder.forward, [], []

    def small_memory(input_ids, **options):
        widths.append(input_ids.numel())
        laid.append(any("forward" in vars(part) for part in network.encoder.modules() if isinstance(part, nn.Linear)))
        if len(widths) == 1:
            raise MemoryError
        return read(input_ids=input_ids, **options)

    monkeypatch.setattr(network.encoder, "forward", small_memory)
    np.testing.assert_allclose(network.predict(TOKENS, ("click",))["click"], whole, atol=0.05 * np.ptp(whole))
    assert laid[0]
    assert not any(laid[1:])
    assert len(laid) > 1
