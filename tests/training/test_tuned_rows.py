"""Every way of tuning with packed rows: decoders score the same with shared histories, and no prompt sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import WRITERS
from training.training_cases import prompt_of

from llmrec_core.contracts import RenderedPrompt
from llmrec_core.models.generation import Beginning, Tree
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import Backbone, load_backbone
from llmrec_core.models.tuning import apply_tuning
from llmrec_core.specs import TrainingSpec, TuningSpec
from llmrec_core.training.network import MAX_TAILS, PromptNetwork
from llmrec_core.training.optimizer import make_optimizer
from llmrec_core.training.packing import pack, plan_rows, tokenise

ADDED = ("lora", "adalora", "ia3", "prefix", "prompt", "bottleneck")


PROMPTS = [
    prompt_of(history, candidate)
    for history in ("star wars , toy story", "night")
    for candidate in ("blue film", "the old house of love", "war")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name) for name, write in WRITERS.items()}


def tuned(folder, method) -> Backbone:
    backbone = load_backbone(folder)
    apply_tuning(backbone.model, TuningSpec(method=method, n_virtual_tokens=3))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    backbone.model.eval()
    return backbone


def network(backbone: Backbone, *, shared: bool) -> PromptNetwork:
    heads = TaskHeads(backbone.hidden_size, ("click",), seed=3)
    return PromptNetwork(backbone, heads, pooling=backbone.default_pooling, shared=shared).eval()


@torch.no_grad()
def packed_scores(net: PromptNetwork, prompts: list[RenderedPrompt]) -> np.ndarray:
    """As in training: packed rows under a tree mask."""
    tokens = tokenise(net.backbone, prompts, shared=net.shared)
    each = np.arange(len(prompts), dtype=np.int64)
    rows = plan_rows(tokens, each, MAX_TAILS)
    order = np.concatenate(rows)
    places = np.split(np.arange(len(order)), np.cumsum([len(row) for row in rows])[:-1])
    found = np.empty(len(prompts), np.float32)
    found[order] = net(pack(tokens, order, places, net.backbone.pad_id))["click"].numpy()
    return found


@pytest.mark.parametrize(
    ("method", "name", "factor", "decay"),
    [
        ("full", "bert", 1, 0.01),
        ("lora", "bert", 5, 0.01),
        ("lora", "gpt2", 1, 0.01),
        ("adalora", "bert", 1, 0.01),
        ("bottleneck", "bert", 1, 0.01),
        ("ia3", "bert", 20, 0.0),
        ("prefix", "gpt2", 20, 0.0),
        ("prompt", "bert", 50, 0.0),
    ],
)
def test_what_a_method_adds_learns_at_its_own_rate(folders, method, name, factor, decay) -> None:
    optimizer = make_optimizer(network(tuned(folders[name], method), shared=True), TrainingSpec(learning_rate=1e-4))
    heads, added = TrainingSpec().head_learning_rate, {g["lr"] for g in optimizer.param_groups}
    assert list(added - {heads}) == [pytest.approx(factor * 1e-4)]
    matrices = [
        group["weight_decay"]
        for group in optimizer.param_groups
        if group["lr"] != heads and any(parameter.ndim > 1 for parameter in group["params"])
    ]
    assert set(matrices) == {decay}


@pytest.mark.parametrize("method", ADDED)
@pytest.mark.parametrize("name", WRITERS)
def test_rows_shared_and_separate(folders, name, method) -> None:
    backbone = tuned(folders[name], method)
    shared, separate = network(backbone, shared=True), network(backbone, shared=False)
    together = packed_scores(shared, PROMPTS)
    alone = np.concatenate([packed_scores(shared, [prompt]) for prompt in PROMPTS])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    scored = shared.predict(tokenise(backbone, PROMPTS, shared=True), ("click",))["click"]
    np.testing.assert_allclose(scored, together, atol=2e-5)
    if name != "bert":
        plain = separate.predict(tokenise(backbone, PROMPTS, shared=False), ("click",))["click"]
        np.testing.assert_allclose(together, plain, atol=2e-5)
        np.testing.assert_allclose(together, packed_scores(separate, PROMPTS), atol=2e-5)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_text_that_goes_on_keeps_the_states_before_it(folders, name, method) -> None:
    backbone = tuned(folders[name], method)
    ids = backbone.encode(["the user liked star wars"])[0]
    with torch.no_grad():
        whole = backbone.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    beginning = Beginning(backbone, ids[:2], packed=True)
    torch.testing.assert_close(beginning.state, whole[1], atol=1e-5, rtol=0)
    tree = Tree(beginning)
    grown = tree.extend(ids[2:], list(range(-1, len(ids) - 3)))
    torch.testing.assert_close(grown, whole[2:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_attention_is_among_the_tokens_of_the_text(folders, method) -> None:
    net = network(tuned(folders["bert"], method), shared=True)
    tokens = tokenise(net.backbone, PROMPTS[:1], shared=True)
    one = np.zeros(1, np.int64)
    found = net.attention(pack(tokens, one, [one], net.backbone.pad_id))
    n_tokens = int(tokens.n_tokens[0])
    assert found.shape[2:] == (n_tokens, n_tokens)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
