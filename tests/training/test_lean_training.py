"""Trainings that need less memory: what is left out changes the results by no more than it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.adalora import SVDLinear
from torch import nn
from training.training_cases import fit, planted_run, planted_split, test_auc

from llmrec_core.errors import SpecError
from llmrec_core.models.tuning_adalora import RankSchedule, adalora_config, rank_schedule
from llmrec_core.specs import TrainingSpec
from llmrec_core.training import trainer as trainer_module
from llmrec_core.training import unpadded
from llmrec_core.training.optimizer import (
    LeanAdamW,
    MasterWeightAdamW,
    from_8_bits,
    make_optimizer,
    round_stochastically,
    to_8_bits,
)

# Its name says what it measures; it is no test.
test_auc.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def split():
    return planted_split()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def bytes_of(optimizer: MasterWeightAdamW) -> int:
    """Weights, masters, gradients and moments; not the counter of steps."""
    total = 0
    for parameter, master in optimizer.pairs:
        total += 2 * parameter.numel() * parameter.element_size()
        total += 0 if master is parameter else master.numel() * master.element_size()
        state = optimizer.state[master]
        total += sum(v.numel() * v.element_size() for k, v in state.items() if k != "step")
    return total


def test_stochastic_rounding_is_right_on_average() -> None:
    torch.manual_seed(0)
    # Between 1 and the next bf16 number, 1.0078125; both signs, and a number that bf16 has.
    for value, low, high in ((1.001, 1.0, 1.0078125), (-1.001, -1.0078125, -1.0), (0.5, 0.5, 0.5)):
        found = round_stochastically(torch.full((40_000,), value)).float()
        assert set(found.unique().tolist()) <= {low, high}
        # Standard deviation of the mean: .0078 * sqrt(.128 * .872) / 200.
        assert found.mean().item() == pytest.approx(value, abs=4 * 1.3e-5)
    assert round_stochastically(torch.tensor([float("inf"), 0.0])).tolist() == [float("inf"), 0.0]


def test_small_steps_add_up_without_masters() -> None:
    """A thousand steps of a tenth of what bf16 can add to 1; plain rounding would lose them all."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(512, dtype=torch.bfloat16))
    optimizer = LeanAdamW([{"params": [weight], "lr": 4e-4, "weight_decay": 0.0}], stochastic=True, eight_bit=False)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(1.0 - 100 * 4e-4, abs=2e-3)
    assert weight.dtype == torch.bfloat16


def test_eight_bits_are_near_and_hold_zero_and_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, 512, generator=generator) * torch.logspace(-6, 2, 8)[:, None]
    for signed, given in ((True, values), (False, values.square())):
        codes, scale = to_8_bits(given, signed=signed)
        assert (codes.dtype, codes.shape, scale.shape) == (torch.uint8, given.shape, (16,))
        found = from_8_bits(codes, scale, signed=signed)
        blocks = given.view(-1, 256).amax(1)
        if not signed:
            assert torch.equal(found.view(-1, 256).amax(1), blocks)
        assert ((found - given).view(-1, 256).abs() <= 0.01 * given.view(-1, 256).abs().amax(1, keepdim=True)).all()
        assert (found - given).norm() < 0.03 * given.norm()
    codes, scale = to_8_bits(torch.zeros(256), signed=True)
    assert torch.equal(from_8_bits(codes, scale, signed=True), torch.zeros(256))


@pytest.mark.parametrize("eight_bit", [False, True])
def test_lean_steps_are_those_of_adamw(eight_bit: bool) -> None:
    torch.manual_seed(0)
    plain, lean = (nn.Parameter(torch.linspace(-1, 1, 4096).view(16, 256)) for _ in range(2))
    options = {"lr": 1e-2, "weight_decay": 0.1}
    book = torch.optim.AdamW([plain], betas=(0.9, 0.999), eps=1e-8, **options)  # type: ignore[arg-type]
    ours = LeanAdamW(
        [{"params": [lean], **options}], stochastic=False, eight_bit=eight_bit, betas=(0.9, 0.999), eps=1e-8
    )
    for _ in range(20):
        gradient = torch.randn(16, 256)
        plain.grad, lean.grad = gradient.clone(), gradient.clone()
        book.step()
        ours.step()
    moved = (plain - torch.linspace(-1, 1, 4096).view(16, 256)).abs().mean()
    assert (plain - lean).abs().mean() <= (0.1 if eight_bit else 1e-5) * moved


@pytest.mark.parametrize("norm", [0.5, 50.0])
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [("masters", torch.float32), ("masters", torch.bfloat16), ("stochastic", torch.bfloat16)],
    ids=["float32", "masters", "stochastic"],
)
def test_clipping_with_the_step_is_clipping_before_it(weights: str, dtype: torch.dtype, norm: float) -> None:
    near = 1e-3 if dtype == torch.float32 else 0.05

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(32, 160), nn.Linear(160, 32), nn.Linear(32, 8)).to(dtype)
        made[2].requires_grad_(False)
        return made

    networks = network(), network()
    spec = TrainingSpec(weights=weights, learning_rate=1e-2)  # type: ignore[arg-type]
    ours, plain = (make_optimizer(one, spec) for one in networks)
    before = [p.detach().clone() for p in networks[0].parameters() if p.requires_grad]
    for step, factor in enumerate((0.1, 1.0, 10.0, 0.1)):
        for one in networks:
            torch.manual_seed(step)
            (factor * one(torch.randn(64, 32, dtype=dtype))).pow(2).mean().backward()
        # The last step is not clipped: it must not be divided by what the one before was divided by.
        if step < 3:
            expected = nn.utils.clip_grad_norm_(networks[1].parameters(), norm)
            assert float(ours.clip(norm)) == pytest.approx(float(expected), rel=near)
        for steps in (ours, plain):
            torch.manual_seed(step)
            steps.step()
        # AdaLoRA looks at gradients after the step: they are clipped in both.
        mine, theirs = ([p.grad for p in one.parameters() if p.grad is not None] for one in networks)
        if dtype == torch.float32:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
        ours.zero_grad()
        plain.zero_grad()
    weights_now = [[p.detach() for p in one.parameters() if p.requires_grad] for one in networks]
    for start, mine, theirs in zip(before, *weights_now, strict=True):
        assert (mine - theirs).abs().mean() <= near * (theirs - start).abs().mean()


def test_matrix_by_matrix_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(one_by_one: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 160), nn.LayerNorm(160), nn.Linear(160, 8)).bfloat16()
        model[1].float()
        made = make_optimizer(model, TrainingSpec(learning_rate=1e-2))
        assert made._one_by_one
        made._one_by_one = one_by_one
        for step in range(4):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype)
            # The last weight gets no gradient once.
            model[2].bias.grad = None if step == 1 else model[2].bias.grad
            made.clip(0.5)
            made.step()
            made.zero_grad()
        states = [made.state[master][key] for _, master in made.pairs for key in ("exp_avg", "exp_avg_sq", "step")]
        return [*(p.detach() for p in model.parameters()), *(master.detach() for _, master in made.pairs), *states]

    for mine, theirs in zip(trained(True), trained(False), strict=True):
        assert torch.equal(mine, theirs)


def test_bytes_that_each_way_needs() -> None:
    def network() -> nn.Linear:
        return nn.Linear(256, 64, bias=False, dtype=torch.bfloat16)

    found = {}
    for weights in ("masters", "stochastic"):
        for optimizer in ("adamw", "adamw-8bit"):
            made = make_optimizer(model := network(), TrainingSpec(weights=weights, optimizer=optimizer))  # type: ignore[arg-type]
            model.weight.grad = torch.ones_like(model.weight)
            made.step()
            found[weights, optimizer] = bytes_of(made) / model.weight.numel()
    scales = 2 * 4 / 256
    assert found == {
        ("masters", "adamw"): 2 + 2 + 4 + 4 + 4,
        ("stochastic", "adamw"): 2 + 2 + 2 + 2,
        ("masters", "adamw-8bit"): 2 + 2 + 4 + 1 + 1 + scales,
        ("stochastic", "adamw-8bit"): 2 + 2 + 1 + 1 + scales,
    }


def test_random_rounding_needs_bf16_weights() -> None:
    with pytest.raises(SpecError, match="no trained weight is bf16") as caught:
        make_optimizer(nn.Linear(2, 2), TrainingSpec(weights="stochastic"))
    assert caught.value.where == "training.weights"


def test_a_planted_rule_is_learnt_without_masters(models, split):
    recommender = fit(
        planted_run(models, precision="bf16", weights="stochastic", optimizer="adamw-8bit"), split, models
    )
    network = recommender._fitted()[0]
    assert network.encoder.dtype == torch.bfloat16
    assert test_auc(recommender, split) > 0.95


LEAN = [
    pytest.param({"precision": "bf16", "weights": "stochastic", "optimizer": "adamw-8bit"}, id="stochastic-8bit"),
    pytest.param({"tuning": {"method": "adalora", "lora_rank": 2}}, id="adalora"),
]


@pytest.mark.parametrize("lean", LEAN)
def test_a_resumed_run_equals_an_uninterrupted_one(models, split, tmp_path, lean):
    run = planted_run(models, max_samples=96, validation_every=3, batch_size=12, early_stopping_patience=0, **lean)
    whole = fit(run, split, models, checkpoints=tmp_path)
    # Two are kept: the one in the middle, and the last.
    again = fit(run, split, models, resume=tmp_path / "checkpoint-6")
    assert whole.outcome is not None
    assert again.outcome is not None
    assert again.outcome.losses == whole.outcome.losses[6:]
    state, expected = (r._fitted()[0].state_dict() for r in (again, whole))
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_adalora_ends_with_the_mean_rank_that_was_asked_for(models, split, monkeypatch):
    made: list[RankSchedule] = []

    def noted(model: nn.Module, n_steps: int) -> RankSchedule | None:
        schedule = rank_schedule(model, n_steps)
        assert schedule is not None
        made.append(schedule)
        return schedule

    monkeypatch.setattr(trainer_module, "rank_schedule", noted)
    tuning = {"method": "adalora", "lora_rank": 2}
    recommender = fit(planted_run(models, tuning=tuning, early_stopping_patience=0), split, models)
    assert test_auc(recommender, split) > 0.95
    (schedule,) = made
    ranks = schedule.ranks()
    # Two layers of six matrices; all began with rank 3.
    assert (len(ranks), sum(ranks.values())) == (12, 24)
    assert len(set(ranks.values())) > 1


def test_the_penalty_of_adalora_is_the_distance_from_orthogonal_factors() -> None:
    layer = SVDLinear(nn.Linear(4, 4), "default", adalora_config(2, 4.0, 0.0, ["x"], transposed=False), r=3)
    schedule = RankSchedule(layer, 2, 10)
    with torch.no_grad():
        layer.lora_A["default"].copy_(torch.eye(4)[:3])
        layer.lora_B["default"].copy_(2 * torch.eye(4)[:, :3])
    # A is orthonormal; B'B - 1 is 3 on the diagonal, three times.
    assert schedule.penalty().item() == pytest.approx(0.1 * (0 + (3 * 3**2) ** 0.5) / 2)


@pytest.mark.parametrize("tuning", [{"freeze_embeddings": False}, {"method": "lora"}])
def test_layers_computed_twice_give_the_same_training(models, split, tuning, monkeypatch):
    # Rows without padding draw other dropout, and layers that are computed twice keep their rows.
    monkeypatch.setattr(unpadded, "_possible", lambda network: False)
    found = []
    for recomputed in (False, True):
        run = planted_run(models, tuning=tuning, max_samples=96, dropout=0.2, gradient_checkpointing=recomputed)
        recommender = fit(run, split, models)
        assert recommender.outcome is not None
        found.append((recommender.outcome.losses, recommender._fitted()[0].state_dict()))
        assert not any(getattr(m, "gradient_checkpointing", False) for m in recommender._fitted()[0].encoder.modules())
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, atol=1e-5, rtol=0)


def test_layers_with_states_before_the_text_are_not_computed_twice(models, split):
    run = planted_run(models, tuning={"method": "prefix"}, max_samples=32, gradient_checkpointing=True)
    with pytest.raises(SpecError, match="cannot be computed twice") as caught:
        fit(run, split, models)
    assert caught.value.where == "training.gradient_checkpointing"
