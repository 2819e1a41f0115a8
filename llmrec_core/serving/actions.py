"""What can be asked of a finished run. Each action takes and returns plain JSON values.

The command line prints these dicts; the pages get the same ones through :mod:`llmrec_core.serving.client`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from llmrec_core.contracts import FitContext, HistoryItem, Query, Recommender
from llmrec_core.data import Dataset, DatasetStore, Split
from llmrec_core.data.privacy.removals import removal_count
from llmrec_core.errors import InputError, NotFoundError
from llmrec_core.explanation.explain import explain as explain_item
from llmrec_core.explanation.explain import explanation_json
from llmrec_core.recommenders import registry
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.generative import GenerativeRecommender
from llmrec_core.recommenders.pipeline import PipelineRecommender, ranker_of
from llmrec_core.recommenders.vector_search import similar_items
from llmrec_core.runs import Run, RunStore
from llmrec_core.runs.continual import split_of
from llmrec_core.serving.policies import PolicyDesk, answer_with_policies, policies_of
from llmrec_core.workspace import Workspace

MODEL = "model"
#: Runs held in memory at once; a MiniLM run takes some 100 MB.
_KEEP = 2

#: Families whose score can have behaviour beside the text.
_MADE_OF_PARTS = (CrossEncoderRecommender, PipelineRecommender)


@dataclass
class LoadedRun:
    """A finished run with its dataset and recommenders; baselines are loaded when first asked for."""

    run: Run
    dataset: Dataset
    split: Split
    context: FitContext
    _recommenders: dict[str, Recommender] = field(default_factory=dict)

    @cached_property
    def desk(self) -> PolicyDesk:
        """Where policies are tried on this run's lists."""
        return PolicyDesk(self.split)

    @property
    def warnings(self) -> list[str]:
        """What a person has to know of the run before relying on its answers; read from disk each time."""
        return [warning] if (warning := self.run.warning) else []

    @property
    def names(self) -> list[str]:
        """ "model" first, then the baselines of the run."""
        folder = self.run.folder / "artifacts" / "baselines"
        return [MODEL, *sorted(p.name for p in folder.iterdir())] if folder.is_dir() else [MODEL]

    def recommender(self, name: str) -> Recommender:
        """Raises: InputError: the run has no recommender of that name."""
        if name not in self.names:
            raise InputError(
                f"run {self.run.run_id} has no recommender {name[:80]!r}.", fix=f"It has: {', '.join(self.names)}."
            )
        if name not in self._recommenders:
            artifacts = self.run.folder / "artifacts"
            folder = artifacts / "recommender" if name == MODEL else artifacts / "baselines" / name
            self._recommenders[name] = registry.load(folder, self.dataset, self.context)
        return self._recommenders[name]


class Server:
    """Answers actions on one workspace, keeping the runs used last in memory."""

    def __init__(self, workspace: Workspace, device: str = "auto") -> None:
        self.workspace = workspace
        self.device = device
        self._loaded: OrderedDict[str, LoadedRun] = OrderedDict()
        self._removals = removal_count(workspace)
        self.actions: dict[str, Callable[..., dict[str, Any]]] = {
            "recommend": self.recommend,
            "explain": self.explain,
            "say": self.say,
            "similar": self.similar,
            "forget": self.forget,
            "facts": self.facts,
        }

    def load(self, run_id: str) -> LoadedRun:
        """Raises: NotFoundError: no such run. InputError: the run is not finished."""
        removals = removal_count(self.workspace)
        if removals != self._removals:
            # A person was removed from some dataset: what is held in memory may still name them.
            self._loaded.clear()
            self._removals = removals
        if run_id in self._loaded:
            self._loaded.move_to_end(run_id)
            return self._loaded[run_id]
        run = RunStore(self.workspace).get(run_id)
        if run.status.state != "done":
            raise InputError(
                f"run {run_id} is {run.status.state}, only a finished run can rank and explain.",
                fix="Wait for it, or resume it with `llmrec runs resume`.",
            )
        spec = run.spec
        if spec.kind == "evaluate" and spec.parent_run:
            # An evaluation keeps figures only; the recommenders stay with the run that fitted them.
            return self.load(spec.parent_run)
        dataset = DatasetStore(self.workspace).load(spec.dataset.name, spec.dataset.version)
        loaded = LoadedRun(
            run,
            dataset,
            split_of(spec, self.workspace, dataset),
            FitContext(workspace_models=self.workspace.models, device=self.device, seed=spec.seed),
        )
        self._loaded[run_id] = loaded
        while len(self._loaded) > _KEEP:
            self._loaded.popitem(last=False)
        return loaded

    def recommend(
        self,
        run_id: str,
        user_id: str,
        k: int = 10,
        model: str = MODEL,
        history: Sequence[Mapping[str, Any]] | None = None,
        context: Mapping[str, str] | None = None,
        policies: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        """The k best unseen items for a user.

        Args:
            run_id: a finished run.
            user_id: a user of the dataset; with ``history`` it may be anybody.
            k: length of the list, at least 1.
            model: "model" or the name of one of the run's baselines.
            history: replaces what is known of the user: ``[{"item_id", "rating"?}]``, oldest first.
            context: replaces the context of the query.
            policies: what is done to the list: mappings, or lines such as "novelty:strength=0.3". None: what the run
                was given, on its own model; []: nothing.

        Returns:
            ``user_id, model, history[], items[{rank, item_id, title, score, popularity, cold, hit}], held_out[],
            warnings[]``; ``popularity`` counts training interactions, ``hit`` marks an item held out for the test. With
            policies also ``policies{settings, depth, notes}, without[], removed[]``, and items have ``rank_without``
            and ``reason``; see :mod:`llmrec_core.serving.policies`.

        Raises:
            InputError: unknown user, item or recommender, an impossible k, or a policy that this data does not allow.
            SpecError: a policy is wrong.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}.", where="k")
        loaded = self.load(run_id)
        dataset = loaded.dataset
        query, held_out = self._query(loaded, user_id, history, context)
        seen = np.array(sorted({dataset.item_idx(h.item_id) for h in query.history}), dtype=np.int64)
        counts = loaded.split.train_item_counts

        def line(idx: int, score: float) -> dict[str, Any]:
            return {
                "item_id": str(dataset.item_ids[idx]),
                "title": dataset.item_text(idx, "title"),
                "score": score,
                "popularity": int(counts[idx]),
                "cold": bool(counts[idx] == 0),
                "hit": idx in held_out,
            }

        recommender = loaded.recommender(model)
        run = loaded.run if run_id == loaded.run.run_id else RunStore(self.workspace).get(run_id)
        result = RunStore(self.workspace).result(run_id) if run.spec.policies and policies is None else None
        chosen = policies_of(run.spec, result, policies, model == MODEL)
        if chosen:
            chain = loaded.desk.chain(chosen, model, recommender, run.spec)
            lists = answer_with_policies(chain, recommender, query, k, seen, line)
        else:
            ranking = recommender.top_k([query], k, [seen])[0]
            pairs = zip(ranking.items, ranking.scores, strict=True)
            lists = {"items": [{"rank": rank, **line(int(i), float(s))} for rank, (i, s) in enumerate(pairs, start=1)]}
        return {
            "user_id": user_id,
            "model": model,
            "history": [self._history_json(dataset, h) for h in query.history],
            **lists,
            "held_out": [
                {"item_id": str(dataset.item_ids[i]), "title": dataset.item_text(i, "title")} for i in sorted(held_out)
            ],
            "warnings": loaded.warnings,
        }

    def similar(self, run_id: str, item_id: str, k: int = 10, model: str = MODEL) -> dict[str, Any]:
        """The k items that a recommender holds to be most like one.

        Args:
            run_id: a finished run.
            item_id: an item of the dataset; it is not in the answer itself.
            k: length of the list, at least 1.
            model: "model" or the name of one of the run's baselines.

        Returns:
            ``item_id, title, model, items[{rank, item_id, title, similarity, popularity, cold}], warnings[]``;
            ``similarity`` is the cosine of the recommender's item vectors, at most 1.

        Raises:
            InputError: unknown item or recommender, an impossible k, a recommender without item vectors, or an item
                of which it knows nothing.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}.", where="k")
        loaded = self.load(run_id)
        dataset, counts = loaded.dataset, loaded.split.train_item_counts
        item_idx = dataset.item_idx(item_id)
        ranking = similar_items(loaded.recommender(model), item_idx, k)
        items = [
            {
                "rank": rank,
                "item_id": str(dataset.item_ids[idx]),
                "title": dataset.item_text(int(idx), "title"),
                "similarity": float(score),
                "popularity": int(counts[idx]),
                "cold": bool(counts[idx] == 0),
            }
            for rank, (idx, score) in enumerate(zip(ranking.items, ranking.scores, strict=True), start=1)
        ]
        return {
            "item_id": item_id,
            "title": dataset.item_text(item_idx, "title"),
            "model": model,
            "items": items,
            "warnings": loaded.warnings,
        }

    def explain(
        self,
        run_id: str,
        user_id: str,
        item_id: str,
        method: str = "shap",
        model: str = MODEL,
        history: Sequence[Mapping[str, Any]] | None = None,
        context: Mapping[str, str] | None = None,
        max_players: int | None = None,
    ) -> dict[str, Any]:
        """Why this item for this user; see :func:`llmrec_core.explanation.explain.explain`.

        Where behaviour stands beside the text, ``parts[{name, value}]`` adds up to the score as well: the text, then
        each feature. An item's own record (its mean, its popularity) is no player and stands in the base value.
        ``notes[]``: what has to be known of the model before its reasons are read.

        Raises:
            InputError: unknown user, item, method or recommender.
        """
        loaded = self.load(run_id)
        query, _ = self._query(loaded, user_id, history, context)
        item_idx = loaded.dataset.item_idx(item_id)
        recommender = loaded.recommender(model)
        explanation = explain_item(
            recommender,
            loaded.dataset,
            query,
            item_idx,
            method=method,
            max_players=max_players,
            seed=loaded.run.spec.seed,
        )
        answer = explanation_json(explanation, loaded.dataset)
        joined = recommender.parts(query, item_idx) if isinstance(recommender, _MADE_OF_PARTS) else None
        if joined is not None:
            answer["parts"] = [{"name": name, "value": value} for name, value in joined]
        return {**answer, "warnings": loaded.warnings, "notes": _notes(recommender)}

    def say(
        self,
        run_id: str,
        user_id: str,
        item_id: str,
        seed: int = 0,
        history: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """A short text about an item for a user, written by the run's model from the item's fields and facts.

        Args:
            run_id: a finished run of the generative family.
            user_id: as in :meth:`recommend`; titles that the user liked may be named.
            item_id: an item of the dataset.
            seed: the same seed gives the same text.
            history: as in :meth:`recommend`.

        Returns:
            ``user_id, item_id, title, text, source, claims[{kind, start, end, text, backed_by[]}], rejected[{text,
            unbacked[]}], prompt, seed, warnings[]``; source is "model", or "fields" where a plain sentence of the
            item's fields stands in because nothing backs what the model wrote.

        Raises:
            InputError: unknown user or item, or a run whose model does not write.
        """
        loaded = self.load(run_id)
        query, _ = self._query(loaded, user_id, history, None)
        item_idx = loaded.dataset.item_idx(item_id)
        recommender = loaded.recommender(MODEL)
        writer = ranker_of(recommender)
        if not isinstance(writer, GenerativeRecommender):
            raise InputError(
                f"the model of run {run_id} ({recommender.family}) writes no texts.",
                fix="Ask a run of the generative family; the preset is called generate.",
            )
        return {
            "user_id": user_id,
            "item_id": item_id,
            "title": loaded.dataset.item_text(item_idx, "title"),
            **writer.write(query, item_idx, seed).as_json(),
            "warnings": loaded.warnings,
        }

    def forget(self, run_id: str) -> dict[str, Any]:
        """Drops a run from memory, so that it can be deleted."""
        return {"forgotten": self._loaded.pop(run_id, None) is not None}

    def facts(self) -> dict[str, Any]:
        """Devices, precision and memory of this machine, and what a run chooses there, for Settings."""
        from llmrec_core.models.device import device_facts
        from llmrec_core.models.machine import choices

        return device_facts(self.device).as_json() | choices(self.device).as_json()

    def _query(
        self,
        loaded: LoadedRun,
        user_id: str,
        history: Sequence[Mapping[str, Any]] | None,
        context: Mapping[str, str] | None,
    ) -> tuple[Query, set[int]]:
        """The query at test time, and the item_idx held out for that user."""
        dataset, split = loaded.dataset, loaded.split
        known = user_id in dataset.user_index
        if not known and history is None:
            raise InputError(
                f"dataset {dataset.name!r} has no user {user_id[:80]!r}.",
                where="user",
                fix="Choose a user of the dataset, or give a history.",
            )
        query = split.query(user_id, "test") if known else Query(user_id)
        held_out: set[int] = set()
        if known:
            rows = dataset.interactions.iloc[split.test]
            held_out = set(rows.loc[rows["user_id"] == user_id, "item_idx"].astype(int))
        if history is not None:
            query = query.with_history([self._history_item(dataset, entry) for entry in history])
        if context:
            query = Query(query.user_id, query.history, query.profile, dict(context))
        return query, held_out

    @staticmethod
    def _history_item(dataset: Dataset, entry: Mapping[str, Any]) -> HistoryItem:
        item_id = str(entry.get("item_id", ""))
        dataset.item_idx(item_id)
        rating, time = entry.get("rating"), entry.get("timestamp")
        return HistoryItem(item_id, None if rating is None else float(rating), None if time is None else float(time))

    @staticmethod
    def _history_json(dataset: Dataset, item: HistoryItem) -> dict[str, Any]:
        def number(value: float | None) -> float | None:
            return None if value is None or math.isnan(value) else float(value)

        return {
            "item_id": item.item_id,
            "title": dataset.item_text(dataset.item_idx(item.item_id), "title"),
            "rating": number(item.rating),
            "timestamp": number(item.timestamp),
        }


def _notes(recommender: Recommender) -> list[str]:
    fusion = recommender.fusion if isinstance(recommender, PipelineRecommender) else None
    if fusion is None or fusion.model_weight > 0:
        return []
    return [
        "On validation users the language model did not improve the order, so its score has no weight in this run: "
        "these are the reasons of what finds the candidates, and the item's own words move nothing."
    ]


def find_action(server: Server, name: str) -> Callable[..., dict[str, Any]]:
    """Raises: NotFoundError: no action of that name."""
    try:
        return server.actions[name]
    except KeyError:
        raise NotFoundError(f"there is no action {name[:80]!r}.", fix=f"Known: {', '.join(server.actions)}.") from None
