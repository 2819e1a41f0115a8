"""Training of the two towers: softmax over the items of the batch and drawn ones, first cheaply, then with the model.

In the first rounds the language model stays as it came: every text is read once into a table, and a step costs
milliseconds. In the later ones it is trained too. Reading all texts of a batch would then take most of the time, so
each step reads some of them anew, with gradients, and writes them into the table; the others stand there as they were
last read (a memory bank: Wu et al., CVPR 2018). Before each validation the whole table is read again.

Candidates of a step are all distinct targets of the batch and items drawn uniformly. An item's logit is lowered by the
log of its probability of being among them (logQ correction: Bengio and Senecal 2003; Yi et al., RecSys 2019), so that
the sum over candidates estimates the sum over all items; a row's own target is there for certain and is not lowered.

A training that goes on with newer data mixes windows of new and of old rows as that of sequences does (``Mix``), and
the probabilities of targets are those of the mix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from llmrec_core.contracts import FitContext, IntArray
from llmrec_core.models.device import resolve_precision
from llmrec_core.models.loading import Backbone
from llmrec_core.models.text_vectors import read_rows
from llmrec_core.specs import TwoTowerSpec
from llmrec_core.training.rounds import Outcome, RoundLoop, pace
from llmrec_core.training.sequence_network import Sequences
from llmrec_core.training.sequences import Histories, Mix, in_parts, sequence_batches, windows_of
from llmrec_core.training.trainer import own_generators
from llmrec_core.training.two_tower_network import TwoTowerNetwork

#: Steps with the language model between two validations.
_TUNED_ROUND = 30


class TextTable:
    """Texts as tokens, and the pooled output of each as it was last read.

    Args:
        rows: token ids of each text: the items, and behind them the prompts of the training examples.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[Sequence[int]]) -> None:
        self.backbone, self.rows = backbone, rows
        self.pooled = torch.empty(0)
        choice = resolve_precision("auto", backbone.device)
        self._half = None if choice.dtype == torch.float32 else choice.dtype

    def read(self, which: Sequence[int] | None = None) -> Tensor:
        """Pooled outputs of some texts (None: all), float32 [n, hidden_size]."""
        rows = self.rows if which is None else [self.rows[i] for i in which]
        device = self.backbone.device.type
        with nullcontext() if self._half is None else torch.autocast(device, dtype=self._half):
            return read_rows(self.backbone, rows).float()

    def refresh(self) -> None:
        """Reads every text again."""
        self.backbone.model.eval()
        with torch.no_grad():
            self.pooled = self.read()


@dataclass(frozen=True)
class PromptExamples:
    """Training examples of the prompt tower: text ``n_items + i`` of the table was asked for, ``targets[i]`` chosen."""

    targets: IntArray
    n_items: int


def train_two_towers(
    network: TwoTowerNetwork,
    table: TextTable,
    examples: Histories | PromptExamples,
    offered: IntArray,
    spec: TwoTowerSpec,
    ctx: FitContext,
    measure: Callable[[], float] | None,
    metric: str,
    fingerprint: str,
    mix: Mix | None = None,
) -> Outcome:
    """Trains ``network`` and the language model of ``table`` in place; leaves the best weights and a fresh table.

    Where ``ctx.continued`` says that they were trained before, the weights as they came are measured too, and kept if
    no round makes them better.

    Args:
        examples: histories, each of whose rows is to be predicted from those before it, or prompts with their targets.
        offered: item_idx that may be drawn as negatives.
        measure: value of ``metric`` (higher is better) with network and table as they are; None: train to the end.
        fingerprint: of data and settings; a checkpoint of another training is refused.
        mix: which rows of histories are predicted; None: all of them. Prompts are mixed by whoever draws them.

    Raises:
        As :meth:`RoundLoop.run`.
    """
    with own_generators(ctx.seed, table.backbone.device):
        loop = _Loop(network, table, examples, offered, spec, ctx, measure, metric, fingerprint, mix)
        outcome = loop.run()
        table.refresh()
    return outcome


@dataclass(frozen=True)
class _Batch:
    """One step, with all that is drawn for it.

    Attributes:
        inputs: what users are made of. targets: the item wanted at each place, [n, length], -1 where none is.
        candidates: items that the softmax runs over, ascending.
        used: texts that are needed, ascending. fresh: places in it that are read anew; None: none.
    """

    inputs: Sequences
    targets: Tensor
    candidates: Tensor
    used: Tensor
    fresh: Tensor | None


class _Loop(RoundLoop[_Batch]):
    when_memory_is_short = "Lower it, n_negatives or tuning_texts, or use another device."

    def __init__(
        self,
        network: TwoTowerNetwork,
        table: TextTable,
        examples: Histories | PromptExamples,
        offered: IntArray,
        spec: TwoTowerSpec,
        ctx: FitContext,
        measure: Callable[[], float] | None,
        metric: str,
        fingerprint: str,
        mix: Mix | None = None,
    ) -> None:
        self.network, self.table, self.examples, self.offered, self.spec = network, table, examples, offered, spec
        self.mix = mix
        self.device = table.backbone.device
        encoder = table.backbone.model
        self.tuned_steps = spec.tuning_steps if any(p.requires_grad for p in encoder.parameters()) else 0
        targets = examples.targets if isinstance(examples, PromptExamples) else examples.items
        weight = np.ones(len(targets))
        n_rows = len(targets)
        if isinstance(examples, Histories):
            n_rows = len(windows_of(examples, spec.max_history, mix, np.random.default_rng(0)).low)
            if mix is not None:
                # Read backwards, a step predicts the row before the one that it belongs to.
                odds = mix.odds(examples.starts)
                weight = (1 - spec.reverse) * odds + spec.reverse * np.append(odds[1:], 0.0)
        found = np.bincount(targets, weight, minlength=int(offered.max(initial=0)) + 1)
        self.share = found / max(1.0, weight.sum())
        if not n_rows:
            self.tuned_steps = 0
        self.n_batches = max(1, -(-n_rows // spec.batch_size))
        groups = [
            {
                "params": [p for p in part.parameters() if p.requires_grad and (p.ndim > 1) == many],
                "weight_decay": decay,
            }
            for part in (network, encoder)
            for many, decay in ((True, spec.weight_decay), (False, 0.0))
        ]
        super().__init__(
            nn.ModuleDict({"towers": network, "encoder": encoder}),
            [group for group in groups if group["params"]],
            ctx,
            n_rounds=spec.epochs + -(-self.tuned_steps // _TUNED_ROUND),
            patience=spec.patience,
            total_steps=spec.epochs * self.n_batches + self.tuned_steps,
            measure=measure,
            metric=metric,
            fingerprint=fingerprint,
            average=spec.average,
        )
        self.encoder_parameters = {id(p) for p in encoder.parameters()}

    # -- rounds --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.ctx.continued is not None:
            self._validate(0)

    def _round(self, number: int) -> str | None:
        tuned = number >= self.spec.epochs
        if number == self.spec.epochs:
            self.without_gain = 0
            if self.best or self.mean:
                # The towers go on from their best epoch, not from their last.
                self.put(self.best or self.mean)
            self._without_mean()
        torch.manual_seed(self.ctx.seed * 100_003 + number)
        self.rng = np.random.default_rng([self.ctx.seed, 9, number])
        self.network.drop.seed([self.ctx.seed, 11, number])
        self.network.train()
        self.table.backbone.model.train(tuned)
        left = self.tuned_steps - (number - self.spec.epochs) * _TUNED_ROUND
        batches = itertools.islice(self._endless(number), min(_TUNED_ROUND, left)) if tuned else self._batches(number)
        for at, (inputs, targets) in enumerate(batches):
            self._set_rates(number, at)
            stopped = self._take_step(self._drawn(inputs, targets, tuned), number, len(targets))
            if stopped:
                break
        else:
            stopped = None
        if tuned:
            self.table.refresh()
        return stopped

    def _without_mean(self) -> None:
        # The table is read by the model as it is: a mean of its weights would rank by texts that it has not read.
        self.average, self.mean = 0.0, {}

    def _run_dry(self, done: int) -> int | None:
        return self.spec.epochs if self.tuned_steps and done < self.spec.epochs else None

    def _set_rates(self, number: int, at: int) -> None:
        """Learning rates: the towers rise and fall in the first phase and go on at a tenth; the model has its own."""
        if number < self.spec.epochs:
            towers, encoder = pace((number + at / self.n_batches) / self.spec.epochs), 0.0
        else:
            done = ((number - self.spec.epochs) * _TUNED_ROUND + at) / self.tuned_steps
            towers, encoder = 0.1, pace(done)
        for group in self.adam.param_groups:
            is_encoder = id(group["params"][0]) in self.encoder_parameters
            group["lr"] = self.spec.tuning_rate * encoder if is_encoder else self.spec.learning_rate * towers

    # -- batches -------------------------------------------------------------------------------------------------------

    def _endless(self, number: int) -> Iterator[tuple[Sequences, Tensor]]:
        for passed in itertools.count():
            yield from self._batches(number + passed * self.n_rounds)

    def _batches(self, number: int) -> Iterator[tuple[Sequences, Tensor]]:
        """Inputs [n, length] and the item wanted at each place, [n, length], -1 where none is."""
        rng = np.random.default_rng([self.ctx.seed, 7, number])
        size = self.spec.batch_size
        if isinstance(self.examples, PromptExamples):
            order = rng.permutation(len(self.examples.targets))
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                rows = torch.from_numpy(self.examples.n_items + chosen)[:, None].to(self.device)
                none = torch.zeros_like(rows)
                wanted = torch.from_numpy(self.examples.targets[chosen])[:, None].to(self.device)
                yield Sequences(rows, none, none, none == 0), wanted
            return
        found = windows_of(self.examples, self.spec.max_history, self.mix, rng)
        turned = torch.from_numpy(rng.random(len(found.low)) < self.spec.reverse)
        yield from sequence_batches(self.examples, found, turned, self.mix, size, self.device)

    def _drawn(self, inputs: Sequences, targets: Tensor, tuned: bool) -> _Batch:
        drawn = torch.from_numpy(self.rng.choice(self.offered, self.spec.n_negatives)).to(self.device)
        candidates = torch.unique(torch.cat([targets[targets >= 0], drawn]))
        used = torch.unique(torch.cat([candidates, inputs.items[inputs.mask]]))
        fresh = None
        if tuned:
            chosen = np.sort(self.rng.choice(len(used), min(self.spec.tuning_texts, len(used)), replace=False))
            fresh = torch.from_numpy(chosen).to(self.device)
        return _Batch(inputs, targets, candidates, used, fresh)

    def _backward(self, batch: _Batch, parts: int) -> float:
        """Texts are read anew in parts too: once for their outputs, and again with a graph when gradients at these are
        known (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP 2021).
        """
        pooled = self.table.pooled[batch.used]
        if batch.fresh is None:
            return self._loss(batch, pooled, parts)
        texts = [batch.used[places] for places in batch.fresh.tensor_split(parts) if len(places)]
        with torch.set_grad_enabled(len(texts) == 1):
            read = torch.cat([self._read(part, number, len(texts)) for number, part in enumerate(texts)])
        self.table.pooled[torch.cat(texts)] = read.detach()
        pooled = pooled.index_copy(0, batch.fresh, read.detach()).requires_grad_()
        value = self._loss(batch, pooled, parts)
        assert pooled.grad is not None
        gradients = pooled.grad[batch.fresh].split([len(part) for part in texts])
        for number, (part, gradient) in enumerate(zip(texts, gradients, strict=True)):
            again = read if len(texts) == 1 else self._read(part, number, len(texts))
            again.backward(gradient)
        return value

    def _read(self, texts: Tensor, number: int, of: int) -> Tensor:
        """Outputs of some texts, with a graph where one is wanted; part ``number`` drops out the same each time."""
        if of == 1:
            return self.table.read(texts.tolist())
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed((self.ctx.seed * 100_003 + self.step) * 101 + number)
            return self.table.read(texts.tolist())

    def _loss(self, batch: _Batch, pooled: Tensor, parts: int) -> float:
        """Adds the gradients of a batch whose texts came to ``pooled``; its loss."""
        whole, n_wanted = 0.0, int((batch.targets >= 0).sum())
        log_share = self._log_inclusion(batch.candidates.cpu().numpy(), n_wanted)
        known = None if isinstance(self.examples, PromptExamples) else batch.used
        for inputs, targets, share in in_parts(batch.inputs, batch.targets, parts):
            wanted = targets[targets >= 0]
            whitened = self.network.whitened(pooled)
            # Padding may point anywhere: its state is never looked at.
            place = torch.searchsorted(batch.used, inputs.items.contiguous()).clamp_max(len(batch.used) - 1)
            placed = Sequences(place, inputs.ratings, inputs.gaps, inputs.mask)
            states = self.network.users(whitened, placed, known)[targets >= 0]
            own_texts = whitened[torch.searchsorted(batch.used, batch.candidates)]
            logits = states @ self.network.items(own_texts, batch.candidates).T
            own = torch.searchsorted(batch.candidates, wanted)
            lowered = logits - log_share.to(logits)
            lowered = lowered.scatter(1, own[:, None], logits.gather(1, own[:, None]))
            loss = nn.functional.cross_entropy(lowered, own) * share
            loss.backward()
            whole += float(loss.detach())
        return whole

    def _log_inclusion(self, candidates: IntArray, n_targets: int) -> Tensor:
        """Log of the probability of each candidate to be in the batch: as one of the targets, or drawn."""
        missed = n_targets * np.log1p(-np.minimum(self.share[candidates], 1 - 1e-9))
        missed += self.spec.n_negatives * math.log1p(-1.0 / max(2, len(self.offered)))
        return torch.from_numpy(np.log(-np.expm1(missed)))

    # -- disk ----------------------------------------------------------------------------------------------------------

    def _resume(self) -> int:
        number = super()._resume()
        if number > self.spec.epochs:
            # The table is not saved: every round of tuning ends with one that was read with the weights as they are.
            self.table.refresh()
            self._without_mean()
        return number
