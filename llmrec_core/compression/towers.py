"""Two towers that learn from a tuned re-ranker: its scores of candidates after training histories are soft targets.

The towers are first fitted as ever. Then each of many training histories gets a list: the item that came next, what the
towers themselves rank first, and random items. The teacher scores the list; the towers learn the softmax of its
standardised scores by cross-entropy (Hinton et al., 2015). Only training rows are looked at; validation decides which
epoch is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llmrec_core.compression._wishes import asked_to_stop
from llmrec_core.contracts import FitContext, FloatArray, IntArray, Query, Recommender
from llmrec_core.errors import InputError
from llmrec_core.recommenders._histories import query_histories
from llmrec_core.recommenders._watch import METRIC, watched
from llmrec_core.recommenders.reworked import reader_of
from llmrec_core.recommenders.two_tower import TwoTowerRecommender
from llmrec_core.specs.compression import DistilTwoTowerSpec
from llmrec_core.training.trainer import own_generators

if TYPE_CHECKING:
    from llmrec_core.data import Split

_BATCH = 64
#: Histories whose candidates the teacher scores at once.
_BLOCK = 50


def distilled_towers(parent: Recommender, spec: DistilTwoTowerSpec, split: Split, ctx: FitContext) -> Recommender:
    """Fitted towers that learned the parent's scores.

    When ``ctx.should_stop()`` says "stop", they learn what the teacher has judged by then for the rest of an epoch.

    Raises:
        InputError: the parent reads no prompts, or the student reads prompts itself. RunCancelledError.
    """
    reader_of(parent)
    if spec.student.user != "history":
        raise InputError(
            "a student reads the history's items, not prompts.",
            where="compression.student.user",
            fix="Leave it on history.",
        )
    student = TwoTowerRecommender(spec.student)
    student.fit(split, ctx)
    rng = np.random.default_rng([ctx.seed, 17])
    queries, chosen = _histories(split, spec.n_histories, rng)
    if not queries:
        raise InputError("no training row has a history before it.", where="compression.n_histories")
    items = _lists(student, queries, chosen, split, spec.n_candidates, rng)
    targets = _soft_targets(parent, queries, items, spec.temperature, ctx)
    judged = slice(len(targets))
    _learn(student, queries[judged], items[judged], targets, split, spec, ctx)
    return student


def _histories(split: Split, n: int, rng: np.random.Generator) -> tuple[list[Query], IntArray]:
    """Training rows drawn by seed as what was known before them, and the item of each."""
    rows = split.labelled("train")
    dataset = split.dataset
    queries, items = [], []
    for at in rng.permutation(len(rows)).tolist():
        history = split.history_before(int(rows.row[at]))
        if history:
            user = str(dataset.user_ids[rows.user_idx[at]])
            queries.append(Query(user, history, dataset.profile(user)))
            items.append(int(rows.item_idx[at]))
        if len(queries) == n:
            break
    return queries, np.array(items, np.int64)


def _lists(
    student: TwoTowerRecommender,
    queries: list[Query],
    chosen: IntArray,
    split: Split,
    n_candidates: int,
    rng: np.random.Generator,
) -> IntArray:
    """Distinct candidates of each history, int64 [n, at most n_candidates]: what came next stands first."""
    offered = np.asarray(split.offered("train"), np.int64)
    index = split.dataset.item_index
    size = min(n_candidates, len(offered))
    found = np.full((len(queries), size), -1, np.int64)
    outside = np.setdiff1d(np.arange(split.dataset.n_items, dtype=np.int64), offered)
    had = [np.array([index[h.item_id] for h in q.history if h.item_id in index], np.int64) for q in queries]
    ranked = student.top_k(queries, size, [np.union1d(seen, outside) for seen in had])
    for row, ranking in enumerate(ranked):
        near = ranking.items[: size // 2]
        pool = np.concatenate([chosen[row : row + 1], near, rng.permutation(offered)])
        _, first = np.unique(pool, return_index=True)
        found[row] = pool[np.sort(first)][:size]
    return found


def _soft_targets(
    teacher: Recommender, queries: list[Query], items: IntArray, temperature: float, ctx: FitContext
) -> FloatArray:
    """Softmax of the teacher's scores over each list, standardised within it: float32 [n_judged, n_candidates].

    All are judged, unless somebody asks to stop: then the first ones, a block at least.
    """
    scores = np.empty(items.shape, np.float64)
    ctx.emit("stage", stage="fusion")
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores[part] = teacher.score(queries[part], items[part])
        done = min(start + _BLOCK, len(queries))
        ctx.emit("progress", stage="fusion", step=done, total=len(queries), eta_s=None)
        if asked_to_stop(ctx):
            scores = scores[:done]
            break
    scores -= scores.mean(1, keepdims=True)
    scores /= np.maximum(scores.std(1, keepdims=True), 1e-9) * temperature
    scores -= scores.max(1, keepdims=True)
    shares = np.exp(scores)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)


def _learn(
    student: TwoTowerRecommender,
    queries: list[Query],
    items: IntArray,
    targets: FloatArray,
    split: Split,
    spec: DistilTwoTowerSpec,
    ctx: FitContext,
) -> None:
    backbone, network = student._fitted()
    device = backbone.device
    histories = query_histories(queries, student._item_index, spec.student.max_history, student._scale)
    wanted, listed = torch.from_numpy(targets).to(device), torch.from_numpy(items).to(device)
    value = watched(split, spec.student.validation_users, ctx)
    best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    untaught = best_value = -np.inf if value is None else value(student)
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=spec.learning_rate, weight_decay=0.01)
    rng = np.random.default_rng([ctx.seed, 19])
    which = torch.arange(split.dataset.n_items, device=device)
    ctx.emit("stage", stage="training")
    with own_generators(ctx.seed, device):
        for epoch in range(1, spec.epochs + 1):
            network.train()
            losses = []
            for rows in np.array_split(rng.permutation(len(queries)), max(1, len(queries) // _BATCH)):
                texts = network.whitened(student._pooled)
                batch = histories.batch(histories.starts[rows], histories.starts[rows + 1], device)
                users = network.last(texts, batch, which)
                vectors: Tensor = network.items(texts, which)[listed[rows]]
                logits = torch.einsum("nd,ncd->nc", users, vectors) / spec.student.temperature
                loss = -(wanted[rows] * functional.log_softmax(logits, -1)).sum(1).mean()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                losses.append(float(loss.detach()))
            network.eval()
            ctx.emit("train", step=epoch, total=spec.epochs, loss=float(np.mean(losses)), eta_s=None)
            now = None if value is None else value(student)
            if now is not None:
                ctx.emit("validation", step=epoch, metrics={METRIC: now})
            if now is None or now > best_value:
                best_value = best_value if now is None else now
                best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            if asked_to_stop(ctx):
                break
    network.load_state_dict(best)
    if value is not None and best_value == untaught:
        ctx.emit(
            "log",
            level="warning",
            message=f"the teacher taught these towers nothing: {METRIC} on validation was {untaught:.4f} before and "
            "never higher after, so they are kept as they were fitted. A teacher that ranks worse is no help.",
        )
    network.requires_grad_(False)
    network.eval()
