"""States of frozen layers that are kept: scores, losses and gradients are those of layers that are computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import WRITERS
from torch import Tensor
from training.training_cases import Events, fit, planted_run, planted_split, prompt_of

from llmrec_core.contracts import FitContext, Query
from llmrec_core.errors import RunCancelledError
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.tuning import apply_tuning, layer_stack
from llmrec_core.models.tuning_frozen import FrozenPart, n_frozen_layers
from llmrec_core.specs import TrainingSpec, TuningMethod, TuningSpec
from llmrec_core.training import frozen as frozen_module
from llmrec_core.training import scoring
from llmrec_core.training.batches import BatchPlan
from llmrec_core.training.frozen import KeptStates, keeping_states
from llmrec_core.training.listwise import ListBatchPlan, ListPrompts
from llmrec_core.training.network import MAX_TAILS, PromptNetwork
from llmrec_core.training.packing import Packed, TokenisedPrompts, pack, plan_rows, tokenise
from llmrec_core.training.row_attention import n_behind
from llmrec_core.training.samples import SampleLists
from llmrec_core.training.steps import nothing_known

TOP = {"method": "top-layers", "n_top_layers": 1}
#: Two passes of six batches, a validation after every third.
LONG = {"max_samples": 48, "batch_size": 8, "validation_every": 3, "early_stopping_patience": 0, "epochs": 2}


PROMPTS = [
    prompt_of(history, candidate)
    for history in ("star wars , toy story", "toy story , star wars", "night")
    for candidate in ("blue film", "the old house of love", "war")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of three layers."""
    root = tmp_path_factory.mktemp("deep")
    return {name: write(root / name, n_layers=3) for name, write in WRITERS.items()}


@pytest.fixture(scope="module")
def split():
    return planted_split(n_users=12)


def network_of(folder, *, shared: bool = True, dtype: torch.dtype = torch.float32, dropout: float = 0) -> PromptNetwork:
    backbone = load_backbone(folder, dtype=dtype, dropout=dropout)
    apply_tuning(backbone.model, TuningSpec(**TOP))
    heads = TaskHeads(backbone.hidden_size, ("click",), seed=3)
    return PromptNetwork(backbone, heads, pooling=backbone.default_pooling, shared=shared).eval()


def kept_of(network: PromptNetwork, tokens: TokenisedPrompts) -> KeptStates:
    return KeptStates(network, FrozenPart(network.encoder, n_frozen_layers(network.encoder)), tokens, lambda: None)


def packed_of(network: PromptNetwork, tokens: TokenisedPrompts, prompts: list[int]) -> tuple[np.ndarray, Packed]:
    chosen = np.array(prompts, np.int64)
    return chosen, pack(tokens, chosen, plan_rows(tokens, chosen, MAX_TAILS), network.backbone.pad_id)


def step(network: PromptNetwork, packed: Packed) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of all trained weights of one loss."""
    network.zero_grad()
    outputs = network(packed)["click"]
    (outputs * torch.arange(1.0, len(outputs) + 1)).sum().backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return outputs.detach(), torch.cat(gradients)


@contextmanager
def counted_reads(network: PromptNetwork) -> Iterator[list[int]]:
    """Inside, how often the lowest layer computes anything, as one number in a list."""
    reads = [0]

    def count(*_: object) -> None:
        reads[0] += 1

    handle = next(layer_stack(network.encoder)[0].children()).register_forward_hook(count)
    try:
        yield reads
    finally:
        handle.remove()


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_from_kept_states_are_the_same_to_the_last_bit(folders, monkeypatch, name, shared, dtype):
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 30)  # several batches, and heads that are read in two of them
    network = network_of(folders[name], shared=shared, dtype=dtype)
    tokens = tokenise(network.backbone, PROMPTS, shared=shared)
    plain = network.predict(tokens, ("click",))["click"]
    with torch.no_grad():  # the top layer goes on learning while the states are kept
        network.kept = kept_of(network, tokens)
        for parameter in network.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    with counted_reads(network) as reads:
        moved = network.predict(tokens, ("click",))["click"]
        assert reads == [0]
        # Other prompts, even equal ones, are no business of what was kept.
        again = tokenise(network.backbone, PROMPTS, shared=shared)
        assert np.array_equal(network.predict(again, ("click",))["click"], moved)
        assert reads[0] > 1
    assert not np.array_equal(moved, plain)
    network.kept = None
    assert np.array_equal(network.predict(tokens, ("click",))["click"], moved)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("shared", [True, False])
def test_rows_of_kept_states_train_as_rows_that_are_computed(folders, monkeypatch, name, shared):
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 30)
    network = network_of(folders[name], shared=shared)
    tokens = tokenise(network.backbone, PROMPTS, shared=shared)
    kept = kept_of(network, tokens)
    for prompts in ([*range(9)], [8, 1, 3, 2, 7], [4]):
        chosen, packed = packed_of(network, tokens, prompts)
        plain_outputs, plain_gradients = step(network, packed)
        with kept.rows(chosen, packed), counted_reads(network) as reads:
            outputs, gradients = step(network, packed)
        assert reads == [0]
        torch.testing.assert_close(outputs, plain_outputs, atol=2e-6, rtol=0)
        assert (gradients - plain_gradients).norm() <= 1e-5 * plain_gradients.norm()
    # Of these prompts and no others: with their neighbours' states the outputs are wrong.
    with kept.rows(np.array([5]), packed):
        assert (step(network, packed)[0] - plain_outputs).abs().max() > 1e-4


def test_states_are_kept_as_they_were_computed_and_a_model_is_left_as_it_was(folders):
    network = network_of(folders["bert"], dtype=torch.bfloat16, dropout=0.5).train()
    tokens = tokenise(network.backbone, PROMPTS, shared=True)
    kept = kept_of(network, tokens)
    assert torch.equal(kept._states, kept_of(network.eval(), tokens)._states), "without dropout"
    network.train()
    kept = kept_of(network, tokens)
    assert kept._states.dtype == torch.bfloat16
    assert not kept._states.requires_grad
    n_tokens = int(tokens.heads.lengths.sum() + tokens.tails.lengths[tokens.tail_of].sum())
    # One row, filled up.
    n_tokens += n_behind(n_tokens, torch.bfloat16)
    assert KeptStates.size(network, tokens) == (n_tokens, kept._states.nbytes) == (n_tokens, n_tokens * 32 * 2)
    assert network.training
    assert network.encoder.training
    assert all("forward" not in vars(layer) for layer in layer_stack(network.encoder))


@pytest.mark.parametrize(
    ("method", "frozen"),
    [("top-layers", 2), ("full", 0), ("none", 0), ("lora", 0), ("bottleneck", 0), ("prefix", 0), ("prompt", 0)],
)
def test_layers_are_frozen_up_to_the_first_trained_weight(folders, method: TuningMethod, frozen):
    for folder in folders.values():
        model = load_backbone(folder).model
        assert n_frozen_layers(apply_tuning(model, TuningSpec(method=method, n_top_layers=1))) == frozen
        if frozen:
            model.get_input_embeddings().weight.requires_grad_(True)
            assert n_frozen_layers(model) == 0
            model.get_input_embeddings().weight.requires_grad_(False)
            model.config.model_type = "one whose layers may hand on more than states"
            assert n_frozen_layers(model) == 0


@pytest.mark.parametrize("listwise", [False, True])
def test_a_plan_tells_which_prompts_its_batches_read(folders, listwise):
    """Three lists of three candidates: a prompt a candidate, or one prompt a list."""
    network = network_of(folders["llama"], shared=not listwise)
    labels = {"rank": np.tile(np.array([1, 0, 0], np.float32), 3)}
    of_list = np.repeat(np.arange(3), 3)
    lists = SampleLists([Query(str(n)) for n in range(3)], np.arange(3), of_list, np.zeros(9, np.int64), labels)
    spec, pad_id = TrainingSpec(batch_size=32), network.backbone.pad_id
    plan: BatchPlan
    if listwise:
        letters = [np.arange(3)] * 3
        plan = ListBatchPlan(
            lists, ListPrompts.of(tokenise(network.backbone, PROMPTS[2::3], shared=False), letters), spec, 0, pad_id
        )
    else:
        plan = BatchPlan(lists, tokenise(network.backbone, PROMPTS, shared=True), spec, 0, pad_id)
    chosen = np.array([2, 0])
    packed, prompts = plan.collate(chosen).packed, plan.prompts_of(chosen)
    assert len(prompts) == len(packed.row) == (2 if listwise else 6)
    for prompt, row, slot in zip(prompts, packed.row, packed.slot, strict=True):
        read = packed.input_ids[row][packed.segment[row] == slot + 1]
        assert read.tolist() == plan.tokens.tails[plan.tokens.tail_of[prompt]].tolist()
        read = packed.input_ids[row][packed.segment[row] == 0]
        assert read.tolist() == plan.tokens.heads[plan.tokens.head_of[prompt]].tolist()


# ---- trainings -------------------------------------------------------------------------------------------------------


def both_ways(monkeypatch, run, split, models) -> tuple[Events, list[float], Events, list[float]]:
    """Events and losses of a training that keeps states, and of one that has no memory for them."""
    kept, plain = Events(), Events()
    losses = fit(run, split, models, events=kept).outcome.losses
    with monkeypatch.context() as patched:
        patched.setattr(frozen_module, "keepable_memory", lambda _: 1000)
        plain_losses = fit(run, split, models, events=plain).outcome.losses
    assert plain.messages.count("may be used") == kept.messages.count("are kept")
    return kept, losses, plain, plain_losses


@pytest.mark.parametrize(
    "more",
    [
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
        {"balance": "grad-norm", "objectives": [{"task": "click"}, {"task": "rating"}]},
    ],
    ids=["layers-computed-twice", "gradients-looked-at"],
)
def test_a_training_with_kept_states_is_the_training_without(monkeypatch, models, split, more):
    run = planted_run(models, **LONG, tuning=TOP, **more)
    kept, losses, plain, plain_losses = both_ways(monkeypatch, run, split, models)
    assert kept.messages.count("is computed once for") == 2
    assert len(losses) == 12 // more.get("gradient_accumulation_steps", 1)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    for one, other in zip(kept.of("validation"), plain.of("validation"), strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-5)


def test_in_one_pass_validations_alone_are_kept_and_nothing_changes_by_a_bit(monkeypatch, models, split):
    run = planted_run(models, **{**LONG, "epochs": 1}, tuning=TOP)
    kept, losses, plain, plain_losses = both_ways(monkeypatch, run, split, models)
    assert "once for validation" in kept.messages
    assert "for each batch of training: each prompt is read once" in kept.messages
    assert losses == plain_losses
    assert kept.of("validation") == plain.of("validation")
    assert len(kept.of("validation")) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dropout": 0.1}, "dropout changes them"),
        ({"adversarial_epsilon": 0.5}, "adversarial training"),
        ({"crop_history": 1.0, "epochs": 2}, "each prompt is read once"),
    ],
)
def test_rows_that_would_change_are_computed_again(models, split, changes, reason):
    events = Events()
    few = {"max_samples": 16, "validation_every": 2, "validation_samples": 16}
    fit(planted_run(models, **{**LONG, **few, **changes}, tuning=TOP), split, models, events=events)
    assert "is computed once for validation" in events.messages
    assert f"again for each batch of training: {reason}" in events.messages


def test_a_resumed_run_with_kept_states_equals_an_uninterrupted_one(models, split, tmp_path):
    run = planted_run(models, **LONG, tuning=TOP)
    whole = fit(run, split, models)

    def interrupted():
        if (tmp_path / "checkpoint-6").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(run, split, models, checkpoints=tmp_path, should_stop=interrupted)
    resumed = fit(run, split, models, resume=tmp_path)
    assert resumed.outcome.losses == whole.outcome.losses[6:]
    ours, theirs = resumed._network.state_dict(), whole._network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert whole._network.kept is None, "a finished model holds no states"


def test_models_that_train_everything_are_left_alone_and_a_cancelled_reading_stops(models, split):
    events = Events()
    fit(planted_run(models, **{**LONG, "epochs": 1}), split, models, events=events)
    assert "frozen" not in events.messages
    stopped = Events()
    with pytest.raises(RunCancelledError):
        fit(planted_run(models, **LONG, tuning=TOP), split, models, events=stopped, should_stop=lambda: "cancel")
    assert not stopped.of("train"), "before the first step"


# ---- memory that runs out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_states_that_do_not_fit_are_read_in_smaller_batches(folders, monkeypatch, first):
    """Both what is kept first and what is kept after it; later batches of each are those its states come from."""
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 48)
    network = network_of(folders["bert"])
    others, tokens = (tokenise(network.backbone, prompts, shared=True) for prompts in (PROMPTS[:4], PROMPTS))
    scores = network.predict(others, ("click",))["click"]
    chosen, packed = packed_of(network, tokens, [8, 1, 3, 2, 7])
    plain_outputs, _ = step(network, packed)
    read, widths = scoring.read_flat, []

    def small_memory(network, batch):
        widths.append(batch.input_ids.numel())
        if len(widths) > first and widths[-1] > 25:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(network, batch)

    lists = SampleLists([Query("")] * 9, np.arange(9), np.arange(9), np.zeros(9, np.int64), {})
    plan = BatchPlan(lists, tokens, TrainingSpec(batch_size=3, epochs=2), 0, network.backbone.pad_id)
    events, spec = Events(), TrainingSpec(validation_every=1, epochs=2)
    ctx = FitContext(device="cpu", emit=events.emit)
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "read_flat", small_memory)
        held_out = SimpleNamespace(tokens=others)
        with keeping_states(network, plan, held_out, spec, ctx) as known:
            assert network.kept is not None
            assert known is not nothing_known
            assert "prompts are now read 24 tokens at once" in events.messages
            assert events.messages.count("are kept") == 3, "told again with the batches that fitted"
            patched.setattr(scoring, "read_flat", read)
            with counted_reads(network) as reads:
                found = network.predict(others, ("click",))["click"]
                with known(SimpleNamespace(lists=chosen, packed=packed)):
                    outputs, _ = step(network, packed)
            assert reads == [0]
            assert scoring.batch_tokens(network) == 24
            kept, network.kept = network.kept, None
            patched.setitem(scoring.BATCH_TOKENS, "cpu", 2 * kept.at_once)
            assert np.array_equal(found, network.predict(others, ("click",))["click"])
    np.testing.assert_allclose(found, scores, atol=1e-6)
    torch.testing.assert_close(outputs, plain_outputs, atol=2e-6, rtol=0)
    assert sum(width > 25 for width in widths[first:]) == 1


@pytest.mark.parametrize("short", ["to keep", "to read"])
def test_without_memory_for_states_the_training_goes_on_and_says_so(monkeypatch, models, split, short):
    run = planted_run(models, **LONG, tuning=TOP)
    plain = fit(run, split, models).outcome.losses
    events, tries = Events(), []
    new_empty = torch.Tensor.new_empty

    def small_memory(self, *size, **options):
        if len(size) == 2:  # where states are kept; attention asks for three
            tries.append(1)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return new_empty(self, *size, **options)

    def nothing_fits(self):
        tries.append(1)
        raise MemoryError

    if short == "to keep":
        monkeypatch.setattr(torch.Tensor, "new_empty", small_memory)
    else:
        monkeypatch.setattr(FrozenPart, "alone", nothing_fits)
    losses = fit(run, split, models, events=events).outcome.losses
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
    told = "there is no memory for states of" if short == "to keep" else "memory is too small to score even"
    for what in ("validation", "training"):
        assert f"computed again for each batch of {what}: " in events.messages
    assert events.messages.count(told) == 2
    assert len(tries) == (2 if short == "to keep" else 14)
    assert ("tokens at once (same" in events.messages) == (short == "to read")


def test_faults_of_another_kind_go_through_and_leave_the_model_as_it_was(folders, monkeypatch):
    network = network_of(folders["llama"])
    before = network.encoder.config._attn_implementation
    tokens = tokenise(network.backbone, PROMPTS, shared=True)
    lists = SampleLists([Query("")] * 9, np.arange(9), np.arange(9), np.zeros(9, np.int64), {})
    plan = BatchPlan(lists, tokens, TrainingSpec(batch_size=3, epochs=2), 0, network.backbone.pad_id)

    def fails(*_):
        raise RuntimeError("another fault")

    monkeypatch.setattr(scoring, "read_flat", fails)
    with (
        pytest.raises(RuntimeError, match=r"^another fault$"),
        keeping_states(network, plan, None, TrainingSpec(epochs=2), FitContext(device="cpu")),
    ):
        pass
    assert network.encoder.config._attn_implementation == before
    assert all("forward" not in vars(layer) for layer in layer_stack(network.encoder))
    assert network.kept is None
