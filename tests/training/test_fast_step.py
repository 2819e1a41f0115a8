"""The step as it is trained (packed, shared, bucketed) against the plain one: each prompt a padded row of its own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_tiny_bert, write_tiny_llama
from torch.nn import functional as F
from training.training_cases import WORDS, fit, planted_run, planted_split

from llmrec_core.contracts import Query, RenderedPrompt, Span
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import load_backbone
from llmrec_core.specs import TrainingSpec
from llmrec_core.training.balancing import make_balance
from llmrec_core.training.batches import BatchPlan
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import pack, plan_rows, tokenise
from llmrec_core.training.samples import SampleLists
from llmrec_core.training.steps import BatchStep
from llmrec_core.training.unpadded import without_padding

N_LISTS, SIZE = 6, 3
SPEC = TrainingSpec(batch_size=SIZE * 2, early_stopping_patience=0)


def _prompts() -> list[RenderedPrompt]:
    """Lists of candidates after histories of one to six words."""
    found = []
    for number in range(N_LISTS):
        history = "user liked " + " ".join(WORDS[: 1 + number])
        for place in range(SIZE):
            candidate = " ".join(WORDS[(number + place) % 5 :][: 1 + place])
            text = f"{history} candidate : {candidate}"
            found.append(RenderedPrompt(text, (Span(len(text) - len(candidate), len(text), "candidate", "title"),), 0))
    return found


def _lists() -> SampleLists:
    rng = np.random.default_rng(1)
    return SampleLists(
        [Query(str(n)) for n in range(N_LISTS)],
        np.arange(N_LISTS),
        np.repeat(np.arange(N_LISTS), SIZE),
        np.zeros(N_LISTS * SIZE, np.int64),
        {
            "click": rng.integers(0, 2, N_LISTS * SIZE).astype(np.float32),
            "rank": np.tile(np.array([1, 0, 0], np.float32), N_LISTS),
        },
    )


@pytest.fixture(scope="module", params=["decoder, shared", "encoder, each alone"])
def network(request, tmp_path_factory):
    decoder = request.param.startswith("decoder")
    write = write_tiny_llama if decoder else write_tiny_bert
    backbone = load_backbone(write(tmp_path_factory.mktemp("m") / "m"), trainable=True)
    heads = TaskHeads(backbone.hidden_size, ("click", "rank"), seed=3)
    return PromptNetwork(backbone, heads, pooling="last" if decoder else "mean", shared=decoder)


def _gradients(network: PromptNetwork) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def _plain(network: PromptNetwork, numbers: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
    """The same batch as the textbook writes it."""
    prompts, lists = _prompts(), _lists()
    backbone = network.backbone
    batch = backbone.pad(backbone.encode([prompts[i].text for i in numbers]))
    mask = batch["attention_mask"]
    hidden = network.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    if network.pooling == "last":
        pooled = hidden[torch.arange(len(numbers)), mask.sum(1) - 1]
    else:
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    outputs = network.heads(pooled)
    click = F.binary_cross_entropy_with_logits(outputs["click"], torch.from_numpy(lists.labels["click"][numbers]))
    rank = F.cross_entropy(outputs["rank"].reshape(-1, SIZE), torch.zeros(len(numbers) // SIZE, dtype=torch.int64))
    loss = click + 0.5 * rank
    loss.backward()
    return float(loss.detach()), _gradients(network)


def test_the_fast_step_has_the_gradients_of_the_plain_one(network):
    lists = _lists()
    tokens = tokenise(network.backbone, _prompts(), shared=network.shared)
    step = BatchStep(network, make_balance({"click": 1.0, "rank": 0.5}, SPEC), SPEC)
    plan = BatchPlan(lists, tokens, SPEC, 0, network.backbone.pad_id)
    assert len(plan) == 3
    network.eval()
    for batch in plan.schedule:
        ready = plan.collate(batch)
        step.begin()
        loss = step.backward(ready, ready.labels.counts(), 1)
        fast = _gradients(network)
        numbers = np.concatenate([np.arange(SIZE * n, SIZE * (n + 1)) for n in batch])
        expected, plain = _plain(network, numbers)
        assert loss == pytest.approx(expected, abs=2e-6)
        # Nothing reads the pooler, so it has no gradient in either.
        assert fast.keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(
                fast[name], gradient, atol=2e-6, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_rows_padded_to_the_longest_of_all_have_the_same_gradients(network):
    """What bucketing saves is padding and nothing else."""
    tokens = tokenise(network.backbone, _prompts(), shared=network.shared)
    plan = BatchPlan(_lists(), tokens, SPEC, 0, network.backbone.pad_id)
    step = BatchStep(network, make_balance({"click": 1.0}, SPEC), SPEC)
    network.eval()
    ready = plan.collate(plan.schedule[0])
    numbers = np.concatenate([np.arange(SIZE * n, SIZE * (n + 1)) for n in plan.schedule[0]])
    wide = pack(tokens, numbers, plan_rows(tokens, numbers, 8), network.backbone.pad_id, width=128)
    assert wide.input_ids.shape[1] == 128 > ready.packed.input_ids.shape[1]
    found = []
    for packed in (ready.packed, wide):
        part = type(ready)(ready.lists, packed, ready.labels, ready.n_prompts, ready.n_tokens)
        step.begin()
        found.append((step.backward(part, part.labels.counts(), 1), _gradients(network)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-6, rtol=1e-4)


def _as_trained(folder: Path, dtype: torch.dtype) -> PromptNetwork:
    """The model of a folder in ``dtype``, with weights so wide that attention is far from even."""
    backbone = load_backbone(folder, trainable=True)
    drawn = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in backbone.model.parameters():
            if weight.ndim > 1:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=drawn))
    backbone.model.to(dtype)
    heads = TaskHeads(backbone.hidden_size, ("click", "rank"), seed=3)
    return PromptNetwork(backbone, heads, pooling=backbone.default_pooling, shared=True).eval()


def _alike(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(F.cosine_similarity(left.flatten().double(), right.flatten().double(), dim=0))


@pytest.mark.parametrize("write", [write_tiny_bert, write_tiny_llama])
def test_the_step_in_bf16_has_the_direction_of_the_one_in_fp32(write, tmp_path):
    """As a run does it on a processor: bf16 weights, rows without padding; against float32 weights and padded rows.

    bf16 has 8 bits: each product is off by up to 0.4 %, of which some twenty follow each other here. What came out was
    0.9994 and more for all gradients together, 0.998 and more for each matrix, and scores within 0.008.
    """
    folder = write(tmp_path / "m", hidden_size=64)
    spec = SPEC.model_copy(update={"batch_size": SIZE * N_LISTS})
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        network = _as_trained(folder, dtype)
        tokens = tokenise(network.backbone, _prompts(), shared=True)
        batch = BatchPlan(_lists(), tokens, spec, 0, network.backbone.pad_id)[0]
        assert len(batch.labels.list_of) == SIZE * N_LISTS
        step = BatchStep(network, make_balance({"click": 1.0, "rank": 0.5}, spec), spec)
        rows = without_padding(network, whole_rows=False) if dtype == torch.bfloat16 else nullcontext()
        with rows:
            assert network.unpadded == (dtype == torch.bfloat16)
            step.begin()
            loss = step.backward(batch, batch.labels.counts(), 1)
            gradients = {name: gradient.float() for name, gradient in _gradients(network).items()}
            with torch.no_grad():
                scores = network(batch.packed)
        found.append((loss, gradients, scores))
    (loss, exact, scores), (half_loss, half, half_scores) = found
    assert half_loss == pytest.approx(loss, rel=2e-3)
    for task, plain in scores.items():
        assert plain.std() > 0.02, "prompts differ, or nothing is proven"
        assert (half_scores[task] - plain).abs().max() < 0.02
        assert (half_scores[task] - plain).std() < 0.1 * plain.std()
    assert half.keys() == exact.keys()
    together = [torch.cat([gradients[name].flatten() for name in exact]) for gradients in (exact, half)]
    assert _alike(*together) >= 0.998
    for name, gradient in exact.items():
        if gradient.ndim > 1:
            assert _alike(half[name], gradient) >= 0.99, name
            assert float(half[name].norm() / gradient.norm()) == pytest.approx(1.0, abs=0.05), name


def test_the_losses_of_a_seeded_fp32_training_to_six_digits(tmp_path):
    """Golden: in float32, with and without AVX-512 and on one thread or two, they move by less than 2e-7."""
    objectives = [{"task": "click"}, {"task": "rating", "weight": 0.5}, {"task": "rank", "weight": 0.2}]
    run = planted_run(
        tmp_path,
        objectives=objectives,
        rank_candidates=3,
        max_samples=72,
        validation_every=50,
        learning_rate=1e-4,
        head_learning_rate=1e-3,
    )
    losses = fit(run, planted_split(n_users=12), tmp_path).outcome.losses
    expected = [0.93483317, 0.90993118, 1.01927054, 1.01215518, 1.23452532]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6)
