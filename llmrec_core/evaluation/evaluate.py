"""Measures several recommenders on the held-out rows of one split: same users, same rows, same bootstrap draws.

Three kinds of question are asked. Ranking: the best k of the whole catalogue without what the user had already.
Click: does a liked held-out item score above disliked ones and above drawn items the user never met (AUC)? Rating: how
far is a predicted rating off? A recommender that cannot answer one is simply without that metric.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llmrec_core.contracts import Emit, FloatArray, IntArray, Query, Ranking, Recommender
from llmrec_core.data.item_features import ItemFeatures
from llmrec_core.errors import InputError, RunFailedError
from llmrec_core.evaluation.beyond import aplt, arp, intra_list_diversity, miscalibration, serendipity
from llmrec_core.evaluation.intervals import (
    AucStatistic,
    CoverageStatistic,
    GiniStatistic,
    MeanStatistic,
    RowMeanStatistic,
    Statistic,
    bootstrap,
    percentile_interval,
)
from llmrec_core.evaluation.metrics import Hits, Values, grouped_auc, novelty
from llmrec_core.evaluation.policy_cost import WITH_POLICIES, policy_report, step_name
from llmrec_core.evaluation.report import EvaluationResult, MetricReport, MetricValue
from llmrec_core.specs import CLICK_METRICS, RANKING_METRICS, RATING_METRICS, EvaluationSpec

if TYPE_CHECKING:
    from llmrec_core.data import EvalSet, Split
    from llmrec_core.policies import Applied, PolicyChain

#: Users asked at once: few for a text model, whose prompts take long, so that progress moves and a stop is heard.
_TEXT_BLOCK, _LIGHT_BLOCK = 32, 512
_BY_USER = ("hit_rate", "precision", "recall", "map", "mrr", "ndcg")


def evaluate(
    recommenders: Mapping[str, Recommender],
    split: Split,
    spec: EvaluationSpec,
    seed: int = 0,
    emit: Emit | None = None,
    model_name: str | None = None,
    like_threshold: float | None = None,
    policies: PolicyChain | None = None,
) -> EvaluationResult:
    """Fitted recommenders on the test part of ``split``.

    Args:
        recommenders: name -> recommender; all are asked about the same users and rows.
        split: the split they were fitted on.
        spec: cut-offs, users, negatives and bootstrap.
        seed: seeds the draw of users, of negatives and of the bootstrap.
        emit: gets ``progress`` events with stage "evaluating", step and total in users; what it raises ends the
            evaluation.
        model_name: the one the verdict is about; the others are its floors. None: the first.
        like_threshold: ratings above it count as clicked; None: the dataset's own.
        policies: measured on the lists of ``model_name``, beside these lists without them.

    Raises:
        InputError: no recommender, an unknown ``model_name``, or another catalogue than the split's.
        RunFailedError: a recommender returned scores that are not numbers.
    """
    model_name = _checked_model(recommenders, split, model_name)
    users = split.queries("test", spec.max_users, seed)
    held = _HeldOut.of(split, users, spec.click_negatives, seed, like_threshold)
    progress = _Progress(emit, recommenders, len(users.queries) * (1 + held.n_questions))
    facts = _ListFacts.of(split, users)

    k = min(max(spec.ks), split.dataset.n_items)
    statistics: dict[tuple[str, str], Statistic] = {}
    per_user: dict[str, dict[str, Values]] = {}
    rankings: dict[str, pd.DataFrame] = {}
    applied: Applied | None = None
    for name, recommender in recommenders.items():
        if policies is not None and name == model_name:
            applied = _apply(name, recommender, users, k, policies, progress)
            lists = {name: (applied.without.items, applied.without.scores)}
            for number, stage in enumerate(applied.stages):
                lists[step_name(number, len(applied.stages))] = (stage.items, stage.scores)
        else:
            lists = {name: _rank(name, recommender, users, k, progress)}
        for key, (ranked, scores) in lists.items():
            hits = Hits.of(ranked, users.targets)
            rankings[key] = _ranking_table(key, split, users, ranked, scores, hits)
            of_lists, per_user[key] = _ranking_statistics(ranked, hits, spec.ks, facts)
            statistics |= {(key, metric): one for metric, one in of_lists.items()}
        of_rows, values = _row_statistics(name, recommender, users, held, progress)
        per_user[name] |= values
        statistics |= {(name, metric): one for metric, one in of_rows.items()}
    # Undefined numbers (AUC with one class, RMSE without ratings) are left out, not shown as NaN.
    statistics = {key: one for key, one in statistics.items() if np.isfinite(one.point)}

    resampled = bootstrap(statistics, len(users.queries), spec.n_bootstrap, seed)
    reports = {}
    for name, values in per_user.items():
        metrics = {}
        for metric in _metric_order(spec.ks):
            statistic = statistics.get((name, metric))
            if statistic is not None:
                low, high = percentile_interval(resampled[name, metric], spec.confidence)
                metrics[metric] = MetricValue(statistic.point, low, high, statistic.n, statistic.n_excluded)
        table = _per_user_table(name, split, users, {m: v for m, v in values.items() if m in metrics})
        reports[name] = MetricReport(metrics, table, rankings[name])
    price = None
    if policies is not None and applied is not None and applied.stages:
        measured = {name: report.metrics for name, report in reports.items()}
        price = policy_report(model_name, policies, applied, measured, statistics, resampled, spec)
    protocol = _protocol(split, spec, users, held, seed, rated=any(metric == "rmse" for _, metric in statistics))
    models = {name: reports[name] for name in recommenders}
    n_users, last = len(users.queries), reports.get(WITH_POLICIES)
    return EvaluationResult(model_name, models, protocol, spec, n_users, statistics, resampled, price, last)


def _checked_model(recommenders: Mapping[str, Recommender], split: Split, model_name: str | None) -> str:
    if not recommenders:
        raise InputError("there is no recommender to evaluate.", fix="Pass at least one.")
    for name, recommender in recommenders.items():
        if recommender.n_items != split.dataset.n_items:
            raise InputError(
                f"{name} knows {recommender.n_items} items, the dataset has {split.dataset.n_items}.",
                fix="Evaluate it on the dataset version it was fitted on.",
            )
    chosen = next(iter(recommenders)) if model_name is None else model_name
    if chosen not in recommenders:
        raise InputError(f"{chosen!r} is not among the recommenders.", fix=f"There are: {', '.join(recommenders)}.")
    return chosen


class _Progress:
    """Counts users asked, over the models that take time and all questions."""

    def __init__(self, emit: Emit | None, recommenders: Mapping[str, Recommender], n_rounds: int) -> None:
        self._emit, self._step, self._started = emit, 0, time.monotonic()
        slow = {name for name, recommender in recommenders.items() if not recommender.capabilities.full_catalogue}
        # Floors answer at once: counted in, they would make the remaining time look longer than it is.
        self._counted = slow or set(recommenders)
        self._total = len(self._counted) * n_rounds
        self.add("", 0)

    def add(self, name: str, n_users: int) -> None:
        self._step += n_users if name in self._counted else 0
        if self._emit is not None:
            elapsed_s, left = time.monotonic() - self._started, self._total - self._step
            eta_s = round(elapsed_s / self._step * left, 1) if self._step else None
            self._emit("progress", stage="evaluating", step=self._step, total=self._total, eta_s=eta_s)


@dataclass(frozen=True)
class _ListFacts:
    """What metrics of lists look up: facts of the items, each history's category mix, and the catalogue's size."""

    features: ItemFeatures
    wanted: Values
    n_catalogue: int

    @classmethod
    def of(cls, split: Split, users: EvalSet) -> _ListFacts:
        features, index = ItemFeatures.of(split), split.dataset.item_index
        histories = [np.array([index[h.item_id] for h in query.history], np.int64) for query in users.queries]
        return cls(features, features.categories.mix(histories), len(split.offered("test")))


@dataclass(frozen=True)
class _HeldOut:
    """Candidates whose scores make the click and rating metrics; one line for each asked user, padded with -1.

    Attributes:
        click_items: int64 [n_users, n_click_columns]. click_labels: bool, same shape.
        rating_items: int64 [n_users, n_rating_columns]. ratings: float64, same shape.
    """

    click_items: IntArray
    click_labels: np.ndarray
    rating_items: IntArray
    ratings: np.ndarray
    threshold: float | None

    @classmethod
    def of(cls, split: Split, users: EvalSet, n_negatives: int, seed: int, like_threshold: float | None) -> _HeldOut:
        dataset = split.dataset
        threshold = dataset.like_threshold if like_threshold is None else like_threshold
        place = np.full(dataset.n_users, -1, np.int64)
        place[users.users] = np.arange(len(users.users))
        rows = split.labelled("test")
        asked = place[rows.user_idx] >= 0
        line, item, rating = place[rows.user_idx[asked]], rows.item_idx[asked], rows.rating[asked].astype(np.float64)
        rated = ~np.isnan(rating)
        if rated.any() and threshold is not None:
            # Where others are rated, an unrated row says neither like nor dislike: it is left out.
            click_line, click_item, label = line[rated], item[rated], rating[rated] > threshold
        else:
            click_line, click_item, label = line, item, np.ones(len(item), bool)
        drawn_line, drawn_item = _draw_unseen(split, users, click_line, n_negatives, seed)
        n = len(users.users)
        click_items, click_labels = _padded(
            n,
            np.concatenate([click_line, drawn_line]),
            np.concatenate([click_item, drawn_item]),
            np.concatenate([label, np.zeros(len(drawn_item), bool)]),
        )
        rating_items, ratings = _padded(n, line[rated], item[rated], rating[rated])
        return cls(click_items, click_labels, rating_items, ratings, threshold if rated.any() else None)

    @property
    def n_clicks(self) -> int:
        return int((self.click_items >= 0).sum())

    @property
    def n_ratings(self) -> int:
        return int((self.rating_items >= 0).sum())

    @property
    def n_questions(self) -> int:
        """Rounds over all users that these rows ask for: clicks, ratings, both or none."""
        return (self.n_clicks > 0) + (self.n_ratings > 0)


def _draw_unseen(
    split: Split, users: EvalSet, line: IntArray, n_negatives: int, seed: int
) -> tuple[IntArray, IntArray]:
    """``n_negatives`` items for each held-out row, of those offered in the test, without repetition within a user, that
    the user met in no part; fewer where there are not as many. Returns (line of the user, item_idx).

    Each user has a generator of their own, so that a user's draw does not depend on who else is asked.
    """
    counts = np.bincount(line, minlength=len(users.users)) * n_negatives
    table = split.dataset.interactions
    user_idx, item_idx = table["user_idx"].to_numpy(), table["item_idx"].to_numpy()
    by_user = np.argsort(user_idx, kind="stable")
    offered = split.offered("test")
    place_of = np.full(split.dataset.n_items, -1, np.int64)
    place_of[offered] = np.arange(len(offered))
    starts = np.searchsorted(user_idx[by_user], np.arange(split.dataset.n_users + 1))
    lines, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for position in np.flatnonzero(counts):
        user = int(users.users[position])
        place = place_of[item_idx[by_user[starts[user] : starts[user + 1]]]]
        met = np.unique(place[place >= 0])
        n_unseen = len(offered) - len(met)
        rng = np.random.default_rng([seed, user])
        drawn = rng.choice(n_unseen, min(int(counts[position]), n_unseen), replace=False)
        # The i-th unseen item stands behind those met items that have at most i unseen ones before them: found from
        # the few met items, since a list of all unseen ones would cost a catalogue a user.
        drawn += np.searchsorted(met - np.arange(len(met)), drawn, side="right")
        lines.append(np.full(len(drawn), position, np.int64))
        items.append(offered[drawn])
    return np.concatenate(lines), np.concatenate(items)


def _padded(n_lines: int, line: IntArray, item: IntArray, value: np.ndarray) -> tuple[IntArray, np.ndarray]:
    """Items and values of each line side by side, [n_lines, longest]; items padded with -1, values with 0."""
    order = np.argsort(line, kind="stable")
    line, item, value = line[order], item[order], value[order]
    sizes = np.bincount(line, minlength=n_lines)
    column = np.arange(len(line)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    width = int(sizes.max(initial=0))
    items, values = np.full((n_lines, width), -1, np.int64), np.zeros((n_lines, width), value.dtype)
    items[line, column], values[line, column] = item, value
    return items, values


def _block_size(recommender: Recommender) -> int:
    return _TEXT_BLOCK if recommender.capabilities.text else _LIGHT_BLOCK


def _rank(
    name: str, recommender: Recommender, users: EvalSet, k: int, progress: _Progress
) -> tuple[IntArray, FloatArray]:
    """Ranked items [n_users, k], -1 where a list is short, and their scores (NaN there)."""
    n = len(users.queries)
    ranked, scores = np.full((n, k), -1, np.int64), np.full((n, k), np.nan, np.float32)
    size = _block_size(recommender)
    for start in range(0, n, size):
        stop = min(start + size, n)
        found: list[Ranking] = recommender.top_k(users.queries[start:stop], k, users.exclude[start:stop])
        for line, ranking in enumerate(found, start):
            ranked[line, : len(ranking.items)] = ranking.items
            scores[line, : len(ranking.items)] = ranking.scores
        progress.add(name, stop - start)
    return ranked, scores


def _apply(
    name: str, recommender: Recommender, users: EvalSet, k: int, policies: PolicyChain, progress: _Progress
) -> Applied:
    """All users' lists as one batch, without and after each policy."""
    found, size = [], _block_size(recommender)
    for start in range(0, len(users.queries), size):
        stop = min(start + size, len(users.queries))
        found.append(policies.candidates(recommender, users.queries[start:stop], k, users.exclude[start:stop]))
        progress.add(name, stop - start)
    return policies.apply(policies.join(found), k)


def _ranking_statistics(
    ranked: IntArray, hits: Hits, ks: Sequence[int], facts: _ListFacts
) -> tuple[dict[str, Statistic], dict[str, Values]]:
    """Statistics by metric name, and the per-user values [n_users] of those that have such."""
    values: dict[str, Values] = {}
    statistics: dict[str, Statistic] = {}
    features, n_catalogue = facts.features, facts.n_catalogue
    for k in ks:
        for metric in _BY_USER:
            values[f"{metric}@{k}"] = getattr(hits, metric)(k)
        values[f"novelty@{k}"] = novelty(ranked, features.item_users, features.n_users, k)
        values[f"serendipity@{k}"] = serendipity(ranked, hits, features, n_catalogue, k)
        values[f"arp@{k}"] = arp(ranked, features, k)
        values[f"aplt@{k}"] = aplt(ranked, features, k)
        values[f"diversity@{k}"] = intra_list_diversity(ranked, features.categories, k)
        values[f"miscalibration@{k}"] = miscalibration(ranked, facts.wanted, features.categories, k)
        statistics[f"coverage@{k}"] = CoverageStatistic(ranked, n_catalogue, k)
        statistics[f"gini@{k}"] = GiniStatistic(ranked, n_catalogue, k)
    return statistics | {metric: MeanStatistic(array) for metric, array in values.items()}, values


def _row_statistics(
    name: str, recommender: Recommender, users: EvalSet, held: _HeldOut, progress: _Progress
) -> tuple[dict[str, Statistic], dict[str, Values]]:
    """As :func:`_ranking_statistics`, for the metrics of single held-out rows: AUC and rating errors."""
    n = len(users.queries)
    values: dict[str, Values] = {}
    statistics: dict[str, Statistic] = {}
    clicks = (
        _ask(recommender, users.queries, held.click_items, _click_scores, progress, name) if held.n_clicks else None
    )
    if clicks is not None:
        rows = held.click_items >= 0
        user, labels, scores = np.nonzero(rows)[0], held.click_labels[rows], clicks[rows]
        values["gauc"] = grouped_auc(labels, scores, user, n)
        statistics |= {"auc": AucStatistic(labels, scores, user, n), "gauc": MeanStatistic(values["gauc"])}
    predicted = (
        _ask(recommender, users.queries, held.rating_items, _ratings, progress, name) if held.n_ratings else None
    )
    if predicted is not None:
        rows = held.rating_items >= 0
        user, errors = np.nonzero(rows)[0], predicted[rows].astype(np.float64) - held.ratings[rows]
        squared, absolute = RowMeanStatistic(errors**2, user, n, root=True), RowMeanStatistic(np.abs(errors), user, n)
        values |= {"rmse": squared.per_user(), "mae": absolute.per_user()}
        statistics |= {"rmse": squared, "mae": absolute}
    return statistics, values


def _click_scores(recommender: Recommender, queries: Sequence[Query], items: IntArray) -> FloatArray:
    task = "click" if "click" in recommender.capabilities.tasks else None
    return recommender.score(queries, items, task=task)


def _ratings(recommender: Recommender, queries: Sequence[Query], items: IntArray) -> FloatArray | None:
    return recommender.predict_ratings(queries, items)


def _ask(
    recommender: Recommender,
    queries: list[Query],
    items: IntArray,
    question: Callable[[Recommender, Sequence[Query], IntArray], FloatArray | None],
    progress: _Progress,
    name: str,
) -> FloatArray | None:
    """The answers for ``items`` [n_users, n_columns], same shape; None where the recommender has none to give."""
    answers = np.full(items.shape, np.nan, np.float32)
    size = _block_size(recommender)
    for start in range(0, len(queries), size):
        stop = min(start + size, len(queries))
        # Users with few rows do not pay for the columns of those with many.
        width = int((items[start:stop] >= 0).sum(axis=1).max(initial=0))
        given = question(recommender, queries[start:stop], items[start:stop, :width])
        if given is None:
            progress.add(name, len(queries) - start)
            return None
        answers[start:stop, :width] = given
        progress.add(name, stop - start)
    if np.isnan(answers[items >= 0]).any():
        raise RunFailedError(
            "it returned scores that are not numbers, so nothing can be measured.",
            where=name,
            fix="Training has diverged: lower the learning rate, or train in fp32.",
        )
    return answers


def _ranking_table(
    name: str, split: Split, users: EvalSet, ranked: IntArray, scores: FloatArray, hits: Hits
) -> pd.DataFrame:
    line, place = np.nonzero(ranked >= 0)
    return pd.DataFrame(
        {
            "model": np.full(len(line), name, object),
            "user_id": split.dataset.user_ids[users.users[line]],
            "rank": place + 1,
            "item_id": split.dataset.item_ids[ranked[line, place]],
            "score": scores[line, place],
            "hit": hits.at[line, place],
        }
    )


def _per_user_table(name: str, split: Split, users: EvalSet, values: Mapping[str, Values]) -> pd.DataFrame:
    user_ids = split.dataset.user_ids[users.users]
    tables = []
    for metric, array in values.items():
        defined = ~np.isnan(array)
        tables.append(pd.DataFrame({"user_id": user_ids[defined], "metric": metric, "value": array[defined]}))
    empty = pd.DataFrame({"user_id": np.empty(0, object), "metric": np.empty(0, object), "value": np.empty(0)})
    table = pd.concat(tables, ignore_index=True) if tables else empty
    table.insert(0, "model", name)
    return table


def _metric_order(ks: Sequence[int]) -> list[str]:
    return [*(f"{metric}@{k}" for k in ks for metric in RANKING_METRICS), *CLICK_METRICS, *RATING_METRICS]


def _protocol(split: Split, spec: EvaluationSpec, users: EvalSet, held: _HeldOut, seed: int, rated: bool) -> str:
    n = len(users.queries)
    drawn = f"{n:,} test users"
    if spec.max_users is not None and n == spec.max_users:
        drawn += f" (at most {spec.max_users:,}, drawn with seed {seed})"
    repeats = f"; {users.n_repeats:,} more had no new item held out and were not asked" if users.n_repeats else ""
    parts = [
        split.describe(),
        f"Full ranking for {drawn}{repeats}.",
    ]
    if held.n_clicks:
        liked = (
            "all held-out interactions count as clicked"
            if held.threshold is None
            else f"held-out ratings above {held.threshold:g} count as clicked, the others as not clicked"
        )
        parts.append(
            f"AUC: {liked}, beside {spec.click_negatives} items a held-out row that the user met in no part "
            f"(drawn evenly with seed {seed}): {held.n_clicks:,} rows, the same for every model; per-user AUC is the "
            "plain mean over users with both classes."
        )
    if rated:
        parts.append(f"RMSE and MAE: {held.n_ratings:,} held-out ratings of these users.")
    parts.append(
        f"Intervals: {100 * spec.confidence:g} % percentile bootstrap over users, {spec.n_bootstrap:,} resamples, "
        "the same draws for every model."
    )
    return " ".join(parts)
