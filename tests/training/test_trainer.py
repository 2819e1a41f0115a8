"""The training loop on a tiny random model: it learns, stops, resumes and leaves no pickle."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training.training_cases import Events, fit, planted_run, planted_split, test_auc

from llmrec_core.errors import ModelError, RunCancelledError, RunFailedError, SpecError
from llmrec_core.models.memory import out_of_memory
from llmrec_core.training import row_attention, scoring
from llmrec_core.training import steps as steps_module
from llmrec_core.training import trainer as trainer_module
from llmrec_core.training.optimizer import MasterWeightAdamW

SHORT = {"max_samples": 96, "validation_every": 2, "early_stopping_patience": 0}


@pytest.fixture(scope="module")
def split():
    return planted_split()


def _weights(recommender) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in recommender._network.state_dict().items()}


def _equal(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_planted_rule_is_learnt_and_noise_is_not(models, split):
    learnt = fit(planted_run(models), split, models)
    assert test_auc(learnt, split) > 0.97
    noise = planted_split(shuffled=True)
    assert 0.2 < test_auc(fit(planted_run(models), noise, models), noise) < 0.8


def test_events_tell_the_whole_story(models, split):
    events = Events()
    fit(planted_run(models, **SHORT), split, models, events=events)
    assert [e["stage"] for e in events.of("stage")] == ["tokenizing", "training"]
    last = events.of("train")[-1]
    assert last["step"] == last["total"] == 6
    assert set(last) == {
        "step", "total", "epoch", "loss", "learning_rate", "samples_per_s", "tokens_per_s", "memory_bytes", "eta_s",
    }  # fmt: skip
    assert last["epoch"] == pytest.approx(1.0)
    assert last["eta_s"] == 0
    assert last["samples_per_s"] > 0
    assert [e["step"] for e in events.of("validation")] == [2, 4, 6]
    assert set(events.of("validation")[0]["metrics"]) == {"loss", "auc"}
    json.dumps(list(events), allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "attention row by row, no padding, 16 prompts a batch; scoring takes 4,096 tokens at once."),
        (
            {"precision": "bf16"},
            f"attention row by row, rows filled up to multiples of {row_attention._ROW_STEP} tokens in attention, 16",
        ),
        # Adversarial pushes go by rows, which are padded then.
        (
            {"adversarial_epsilon": 0.1, "gradient_accumulation_steps": 2},
            "attention eager, rows padded to the longest of a batch, those of like length together, 16 prompts a batch "
            "and 2 batches a step; scoring",
        ),
    ],
)
def test_the_log_says_what_was_chosen_for_the_device(models, split, settings, said):
    events = Events()
    fit(planted_run(models, **SHORT, **settings), split, models, events=events)
    assert f"Training with {said}" in events.messages


@pytest.mark.parametrize(
    ("precision", "tasks", "asked", "size"),
    [
        ("fp32", ["click"], None, 32),
        ("bf16", ["click"], None, 48),
        ("bf16", ["click"], 8, 8),
        ("bf16", ["rating"], None, 32),
        ("bf16", ["click", "rating"], None, 32),
    ],
)
def test_a_batch_size_that_nobody_names_is_chosen(models, split, precision, tasks, asked, size):
    events = Events()
    run = planted_run(
        models,
        **{**SHORT, "precision": precision, "batch_size": asked, "max_samples": 96, "ratings_per_history": 1},
        objectives=[{"task": task} for task in tasks],
    )
    assert fit(run, split, models, events=events).outcome.steps == 96 // size
    assert f" {size} prompts a batch; " in events.messages


def test_nothing_is_printed_and_global_generators_stay_as_they_were(models, split, capfd):
    torch.manual_seed(1)
    before = (torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate())
    fit(planted_run(models, dropout=0.1, **SHORT), split, models)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(models, split, tmp_path, accumulation):
    run = planted_run(models, dropout=0.1, gradient_accumulation_steps=accumulation, epochs=2, **SHORT)
    whole = fit(run, split, models)
    total = whole.outcome.steps
    stop_at = total // 2 // 2 * 2
    steps = iter(range(1, 1000))

    def interrupted():
        if next(steps) > stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(run, split, models, checkpoints=tmp_path / "c", should_stop=interrupted)
    events = Events()
    resumed = fit(run, split, models, resume=tmp_path / "c", events=events)
    assert f"checkpoint-{stop_at}" in events.messages
    assert resumed.outcome.losses == whole.outcome.losses[stop_at:]
    assert resumed.outcome.best_value == whole.outcome.best_value
    assert _equal(_weights(resumed), _weights(whole))


def test_checkpoints_hold_safetensors_and_json_and_two_are_kept(models, split, tmp_path):
    fit(planted_run(models, **SHORT), split, models, checkpoints=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    head = json.loads((tmp_path / "checkpoint-6" / "checkpoint.json").read_text())
    assert set(head["files"]) | {"checkpoint.json"} == {f.name for f in files if f.parent.name == "checkpoint-6"}


@pytest.mark.parametrize("damage", ["flip", "cut", "no head"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(models, split, tmp_path, damage):
    run = planted_run(models, **SHORT)
    whole = fit(run, split, models, checkpoints=tmp_path)
    newest = tmp_path / "checkpoint-6"
    target = newest / "optimizer.safetensors"
    data = bytearray(target.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
        target.write_bytes(data)
    elif damage == "cut":
        target.write_bytes(data[: len(data) // 2])
    else:
        (newest / "checkpoint.json").unlink()
    events = Events()
    resumed = fit(run, split, models, resume=tmp_path, events=events)
    assert "checkpoint-6 is damaged" in events.messages
    assert "Going on from checkpoint-4" in events.messages
    assert resumed.outcome.losses == whole.outcome.losses[4:]
    assert _equal(_weights(resumed), _weights(whole))


def test_without_a_usable_checkpoint_it_starts_over_and_says_so(models, split, tmp_path):
    events = Events()
    run = planted_run(models, **SHORT)
    resumed = fit(run, split, models, resume=tmp_path, events=events)
    assert "starts from the beginning" in events.messages
    assert resumed.outcome.losses == fit(run, split, models).outcome.losses


def test_a_checkpoint_of_another_training_is_refused(models, split, tmp_path):
    fit(planted_run(models, **SHORT), split, models, checkpoints=tmp_path)
    with pytest.raises(ModelError, match="other data"):
        fit(planted_run(models, seed=1, **SHORT), split, models, resume=tmp_path)


def test_a_pickle_beside_a_checkpoint_is_never_opened(models, split, tmp_path):
    run = planted_run(models, **SHORT)
    fit(run, split, models, checkpoints=tmp_path)
    canary = b"cos\nsystem\n(S'touch pwned'\ntR."
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "training_args.bin"):
        (tmp_path / "checkpoint-6" / name).write_bytes(canary)
    fit(run, split, models, resume=tmp_path)
    assert not Path("pwned").exists()


def test_a_full_disk_fails_with_the_reason_and_keeps_the_checkpoint_before(models, split, tmp_path, monkeypatch):
    from llmrec_core.training import checkpoints

    save, calls = checkpoints.save_file, iter(range(100))

    def full(*args, **kwargs):
        if next(calls) >= 4:
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunFailedError, match="No space left"):
        fit(planted_run(models, **SHORT), split, models, checkpoints=tmp_path)
    monkeypatch.undo()
    found = checkpoints.newest_checkpoint(tmp_path, lambda *_: None)
    assert found is not None
    assert found.name == "checkpoint-2"


def test_cancel_raises_at_once(models, split):
    polls = iter(["", "", "cancel"])
    with pytest.raises(RunCancelledError):
        fit(planted_run(models, **SHORT), split, models, should_stop=lambda: next(polls))
    assert next(polls, "used up") == "used up"


def test_stop_keeps_what_is_there(models, split):
    polls = iter([None, None, "stop"])
    events = Events()
    stopped = fit(planted_run(models, **SHORT), split, models, should_stop=lambda: next(polls, None), events=events)
    assert (stopped.outcome.steps, stopped.outcome.stopped) == (3, "person")
    assert events.of("validation")[-1]["step"] == 3, "what is kept has been measured"
    assert math.isfinite(test_auc(stopped, split))


def test_early_stopping_restores_the_best_weights(models, split, monkeypatch):
    values = iter([0.6, 0.9, 0.7, 0.5, 0.4])
    seen = {}

    def measure(self, network):
        value = next(values)
        seen[value] = {name: t.detach().clone() for name, t in network.state_dict().items()}
        return {"loss": 0.0, "auc": value}

    monkeypatch.setattr(trainer_module.Validation, "measure", measure)
    events = Events()
    run = planted_run(models, validation_every=1, early_stopping_patience=2, max_samples=320)
    stopped = fit(run, split, models, events=events)
    assert stopped.outcome.stopped == "early"
    assert (stopped.outcome.best_step, stopped.outcome.best_value, stopped.outcome.steps) == (2, 0.9, 4)
    assert _equal(_weights(stopped), seen[0.9])
    assert not _equal(_weights(stopped), seen[0.5])
    assert "stopped at step 4" in events.messages


def test_for_rmse_smaller_is_better(models, split, monkeypatch):
    values = iter([0.9, 0.6, 0.8])
    monkeypatch.setattr(trainer_module.Validation, "measure", lambda self, network: {"rmse": next(values)})
    settings = {**SHORT, "ratings_per_history": 1}
    run = planted_run(models, objectives=[{"task": "rating"}], validation_metric="rmse", **settings)
    assert fit(run, split, models).outcome.best_step == 4


@pytest.mark.parametrize(
    ("tuning", "moved"),
    [
        ({"method": "lora"}, "lora_"),
        ({"method": "top-layers", "n_top_layers": 1}, "encoder.layer.1."),
        ({"method": "full"}, "encoder.layer."),
    ],
    ids=["lora", "top-layers", "frozen embeddings"],
)
def test_frozen_weights_are_untouched(models, split, tuning, moved):
    run = planted_run(models, tuning=tuning, **SHORT)
    before = _weights(fit(planted_run(models, tuning=tuning, **{**SHORT, "epochs": 1e-6}), split, models))
    after = _weights(fit(run, split, models))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    body = {name for name in changed if not name.startswith("heads.")}
    # The short fit above made one step too, so only frozen weights are equal for certain.
    assert body
    assert all(moved in name or "embeddings.LayerNorm" in name for name in body)


def test_several_heads_learn_together(models, split):
    objectives = [{"task": "click"}, {"task": "rating", "weight": 0.5}, {"task": "rank", "weight": 0.2}]
    run = planted_run(models, objectives=objectives, rank_candidates=3, max_samples=900, validation_metric="rmse")
    recommender = fit(run, split, models)
    assert recommender.capabilities.tasks == {"click", "rating", "rank"}
    rows = split.labelled("test")
    queries = [split.query(str(split.dataset.user_ids[user]), "test") for user in rows.user_idx]
    predicted = recommender.predict_ratings(queries, rows.item_idx[:, None])[:, 0]
    assert np.sqrt(np.mean((predicted - rows.rating) ** 2)) < 1.0, "a constant would be 2 stars off"
    default = recommender.score(queries, rows.item_idx[:, None])
    np.testing.assert_array_equal(default, recommender.score(queries, rows.item_idx[:, None], task="rank"))


def test_a_metric_without_its_head_is_refused(models, split):
    with pytest.raises(SpecError, match="rating objective"):
        fit(planted_run(models, validation_metric="rmse"), split, models)


def test_out_of_memory_gives_the_same_training_in_parts(models, split, monkeypatch):
    objectives = [{"task": "click"}, {"task": "rank", "weight": 0.5}]
    settings = {**SHORT, "objectives": objectives, "rank_candidates": 2, "gradient_accumulation_steps": 2}
    plain = fit(planted_run(models, **settings), split, models)
    forward = trainer_module.PromptNetwork.forward

    def small_memory(self, packed):
        if self.training and len(packed.row) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, packed)

    monkeypatch.setattr(trainer_module.PromptNetwork, "forward", small_memory)
    events = Events()
    parted = fit(planted_run(models, **settings), split, models, events=events)
    assert "in 2 parts" in events.messages
    np.testing.assert_allclose(parted.outcome.losses, plain.outcome.losses, rtol=1e-4)


def test_out_of_memory_in_a_later_batch_of_a_step_leaves_its_losses(models, split, monkeypatch):
    """The batches before it are computed again, and count once."""
    objectives = [{"task": "click"}, {"task": "rank", "weight": 0.5}]
    settings = {**SHORT, "objectives": objectives, "rank_candidates": 2, "gradient_accumulation_steps": 3}
    told = {}
    calls = []
    for name in ("plain", "parted"):
        forward = trainer_module.PromptNetwork.forward

        def second_fails(self, packed, forward=forward):
            calls.append(len(packed.row))
            if self.training and len(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, packed)

        events = Events()
        with monkeypatch.context() as patch:
            if name == "parted":
                patch.setattr(trainer_module.PromptNetwork, "forward", second_fails)
            fitted = fit(planted_run(models, **settings), split, models, events=events)
        told[name] = (fitted.outcome.losses, [e["losses"] for e in events.of("train")], events.messages)
    assert "in 2 parts" in told["parted"][2]
    assert len(told["plain"][0]) == 2
    np.testing.assert_allclose(told["parted"][0], told["plain"][0], rtol=1e-5)
    for parted, plain in zip(told["parted"][1], told["plain"][1], strict=False):
        assert parted == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("tuning", [{"freeze_embeddings": False}, {"method": "top-layers", "n_top_layers": 1}])
def test_a_long_list_is_parted_where_its_losses_allow_it(models, split, monkeypatch, tuning):
    """A batch of two lists that fits three prompts: parts of whole lists alone would never be small enough.

    With frozen layers whose states are kept, parts of a list do without them.
    """
    objectives = [{"task": "click"}, {"task": "rating", "weight": 0.5}]
    settings = {**SHORT, "epochs": 2, "objectives": objectives, "negatives_per_positive": 5, "batch_size": 12}
    settings |= {"tuning": tuning}
    plain = fit(planted_run(models, **settings), split, models)
    forward = trainer_module.PromptNetwork.forward

    def small_memory(self, packed):
        if self.training and len(packed.row) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, packed)

    monkeypatch.setattr(trainer_module.PromptNetwork, "forward", small_memory)
    events = Events()
    parted = fit(planted_run(models, **settings), split, models, events=events)
    assert "in 4 parts" in events.messages
    assert ("computed once for training" in events.messages) == ("method" in tuning)
    np.testing.assert_allclose(parted.outcome.losses, plain.outcome.losses, rtol=1e-4)
    ranks = {**settings, "objectives": [{"task": "rank"}], "negatives_per_positive": 0, "rank_candidates": 6}
    with pytest.raises(RunFailedError, match=r"rank_candidates: .*compares them"):
        fit(planted_run(models, **ranks), split, models)
    with pytest.raises(RunFailedError, match="adversarial training"):
        fit(planted_run(models, **settings, adversarial_epsilon=0.5), split, models)


def test_out_of_memory_in_a_validation_is_told_and_changes_nothing(models, split, monkeypatch):
    plain = fit(planted_run(models, **SHORT), split, models)
    read_flat = scoring.read_flat

    def small_memory(network, batch):
        if batch.input_ids.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read_flat(network, batch)

    monkeypatch.setattr(scoring, "read_flat", small_memory)
    events = Events()
    halved = fit(planted_run(models, **SHORT), split, models, events=events)
    assert "prompts are now scored 256 tokens at once" in events.messages
    assert halved.outcome.losses == plain.outcome.losses
    assert halved.outcome.best_value == pytest.approx(plain.outcome.best_value, abs=1e-6)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("whatever it says"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB, other allocations: 1 GB, max allowed: 9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
def test_memory_that_ran_out_is_told_from_other_faults(error):
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not out_of_memory(ValueError("CUDA error: out of memory"))


def test_the_allocator_of_processors_is_understood():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(found.value)


def test_out_of_memory_for_ever_is_a_clear_failure(models, split, monkeypatch):
    def none_left(self, packed):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer_module.PromptNetwork, "forward", none_left)
    with pytest.raises(RunFailedError, match="memory"):
        fit(planted_run(models, **SHORT), split, models)


def test_a_diverged_loss_is_a_clear_failure(models, split, monkeypatch):
    monkeypatch.setattr(steps_module, "task_losses", lambda *_: {"click": torch.tensor(math.nan, requires_grad=True)})
    with pytest.raises(RunFailedError, match="diverged"):
        fit(planted_run(models, **SHORT), split, models)


def test_bf16_weights_learn_through_their_masters(models, split):
    learnt = fit(planted_run(models, precision="bf16"), split, models)
    assert learnt._network.encoder.dtype == torch.bfloat16
    assert test_auc(learnt, split) > 0.95


def test_masters_keep_steps_that_bf16_would_lose():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterWeightAdamW([{"params": [weight], "lr": 1e-4, "weight_decay": 0.0}])
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    # AdamW moves by lr a step; 1e-4 is below half of bf16's step at 1.
    torch.testing.assert_close(optimizer.pairs[0][1].detach(), torch.full((4,), 0.99), atol=1e-4, rtol=0)
    assert weight[0].item() == pytest.approx(0.99, abs=0.004)


def test_bucketing_and_accumulation_see_every_sample_once(models, split):
    for bucket in (True, False):
        recommender = fit(planted_run(models, bucket_by_length=bucket, **SHORT), split, models)
        assert recommender.outcome.steps == 6


def test_an_interrupted_save_leaves_the_older_checkpoint(models, split, tmp_path):
    run = planted_run(models, **SHORT)
    fit(run, split, models, checkpoints=tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-6")
    torn = tmp_path / "checkpoint-6"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    events = Events()
    fit(run, split, models, resume=tmp_path, events=events)
    assert "Going on from checkpoint-4" in events.messages


def test_the_losses_of_a_seeded_training_stay_what_they_are(models, split):
    """Golden: whatever changes these numbers changes every result, and belongs into the changelog."""
    objectives = [{"task": "click"}, {"task": "rating", "weight": 0.5}, {"task": "rank", "weight": 0.2}]
    run = planted_run(models, objectives=objectives, rank_candidates=3, max_samples=96, validation_every=2)
    expected = [1.11979, 1.04195, 0.99972, 0.96178, 0.89277, 0.86338]
    np.testing.assert_allclose(fit(run, split, models).outcome.losses, expected, rtol=2e-3)


def test_auc_is_read_from_the_click_head(models, split):
    """Here everything is equally likely to come next, so a rank head would say nothing."""
    objectives = [{"task": "click"}, {"task": "rank", "weight": 0.01}]
    run = planted_run(models, objectives=objectives, rank_candidates=2, max_samples=640)
    assert fit(run, split, models).outcome.best_value > 0.9
