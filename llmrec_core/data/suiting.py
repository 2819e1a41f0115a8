"""What a preset has to change for the data at hand: filters that would leave nothing, and records instead of histories.

A preset is written for interactions with histories. Here the data is looked at before a run is submitted, and what is
chosen for it goes into the run's spec like everything else, with a sentence that says why. What somebody set by hand is
laid over it afterwards, so nothing here puts an explicit setting aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llmrec_core.data.dataset import Dataset
from llmrec_core.data.splitting.cutting import kept_rows, resolved
from llmrec_core.specs import BlendSpec, CrossEncoderSpec, PipelineSpec, RunSpec, SplitSpec, ranker_of

RecordUse = Literal["judged", "next", "answers"]

#: Leave-one-out asks users with three interactions; with fewer such users than this, figures mean little.
_LEAST_ASKED_USERS = 30
#: With fewer records than this, more of them are held out, so that the AUC says something, and each is read more often.
_FEW_RECORDS = 2_000
#: Prompts that a model reads in all, where few records are read again and again; no record more often than the second.
_PROMPTS_READ, _MOST_EPOCHS = 2_400, 12
#: Longest prompts of records: titles that are quoted, tokens for a quoted title and for the rest, longest text.
_MOST_TITLES, _TITLE_TOKENS, _OTHER_TOKENS, _TEXT_CHARS, _TEXT_TOKENS = 30, 8, 48, 1200, 320
_NO_FILTER = {"split.min_user_interactions": 0, "split.min_item_interactions": 0}


@dataclass(frozen=True)
class Choice:
    """Fields of a run spec by dotted path, and the sentence that says why they are chosen."""

    fields: Mapping[str, Any]
    why: str


def record_use(dataset: Dataset) -> RecordUse | None:
    """What can be learned from a dataset whose interactions were read from instruction records; None for other data.

    "judged": a history of liked and disliked titles and a judged one; "next": titles and the one that followed;
    "answers": a text with yes or no.
    """
    meta = dataset.meta
    told = {source.name for source in meta.sources if source.kind == "instructions"}
    read = {source.name for source in meta.sources if source.kind == "interactions"}
    if not read or not read <= told:
        return None
    if {"instruction", "input"} & set(meta.item_fields):
        return "answers"
    return "judged" if meta.rating_kind == "binary" else "next"


def suited(spec: RunSpec, dataset: Dataset) -> tuple[Choice, ...]:
    """What ``spec``, a preset, has to change for ``dataset``; () where it fits as it is."""
    use = record_use(dataset)
    came_split = resolved(dataset, spec.split).protocol == "given"
    reads_prompts = isinstance(spec.recommender, CrossEncoderSpec | PipelineSpec)
    if use == "next" and not came_split:
        use = None  # Histories with what followed are like any others.
    if use is not None and reads_prompts:
        choices = [_split_of_records(dataset, came_split)]
        if use != "next":
            choices += [_reading(dataset, use), _learning(spec, dataset)]
        return tuple(choices)
    return (*_members(spec, dataset), *(() if came_split else _filters(spec.split, dataset)))


def _members(spec: RunSpec, dataset: Dataset) -> tuple[Choice, ...]:
    """A blend without its trend where the data has no times."""
    blend = spec.recommender
    if dataset.meta.has_timestamps or not isinstance(blend, BlendSpec):
        return ()
    kept = [member.model_dump(mode="json") for member in blend.members if member.family != "trend"]
    if not kept or len(kept) == len(blend.members):
        return ()
    return (Choice({"recommender.members": kept}, "This data has no times, so the blend goes without a trend."),)


def _filters(spec: SplitSpec, dataset: Dataset) -> tuple[Choice, ...]:
    """Without filters where they would leave hardly anybody to ask; rows at random where nobody could be asked."""
    if _n_asked(dataset, spec) >= min(_LEAST_ASKED_USERS, dataset.n_users):
        return ()
    open_spec = spec.model_copy(update={"min_user_interactions": 0, "min_item_interactions": 0})
    n_open, n_filtered = _n_asked(dataset, open_spec), _n_asked(dataset, spec)
    low = f"{spec.min_user_interactions} interactions of every user and {spec.min_item_interactions} of every item"
    if n_open < 3:
        return (
            Choice(
                {"split.protocol": "random", **_NO_FILTER},
                f"Hardly anybody has three interactions here, so rows are held out at random, and nobody is left out "
                f"for having fewer than five ({low} would leave {n_filtered:,} users to ask).",
            ),
        )
    if n_open <= n_filtered:
        return ()
    return (
        Choice(
            _NO_FILTER,
            f"Asking for {low} would leave {n_filtered:,} users who can be tested; without that filter there are "
            f"{n_open:,}, so nothing is filtered.",
        ),
    )


def _n_asked(dataset: Dataset, spec: SplitSpec) -> int:
    """Users that leave-one-out can ask."""
    users = dataset.interactions["user_idx"].to_numpy(np.int64)[kept_rows(dataset, spec)]
    return int((np.bincount(users, minlength=1) >= 3).sum())


def _split_of_records(dataset: Dataset, came_split: bool) -> Choice:
    fields: dict[str, Any] = {"split.protocol": "records", **_NO_FILTER}
    held_out = "the parts that came with the data say which are held out"
    if not came_split:
        share = 0.15 if dataset.n_users < _FEW_RECORDS else 0.1
        fields |= {"split.test_fraction": share, "split.valid_fraction": share}
        held_out = f"{share:.0%} of the records are the test and {share:.0%} the validation"
    return Choice(
        fields,
        f"These are {dataset.n_users:,} instruction records: each asks one question, so the split is by record "
        f"({held_out}), and no user or item is left out for having few interactions.",
    )


def _reading(dataset: Dataset, use: RecordUse) -> Choice:
    """What stands in the prompt: all that the record tells."""
    if use == "judged":
        longest = int(np.bincount(dataset.interactions["user_idx"].to_numpy(np.int64)).max()) - 1
        n_titles = max(1, min(longest, _MOST_TITLES))
        return Choice(
            {
                "prompt.template": "multi-level",
                "prompt.max_history": n_titles,
                "prompt.max_tokens": _OTHER_TOKENS + n_titles * _TITLE_TOKENS,
            },
            f"The prompt names what the record likes, what it dislikes and the title it asks about: up to {n_titles} "
            "titles before that one.",
        )
    texts = [name for name in ("instruction", "input") if name in dataset.meta.item_fields]
    # A text that is the same in all records tells nothing and takes room.
    telling = [name for name in texts if dataset.items[name].nunique() > 1] or texts
    return Choice(
        {
            "prompt.item_fields": telling,
            "prompt.max_field_chars": _TEXT_CHARS,
            "prompt.max_tokens": _TEXT_TOKENS,
            "prompt.max_history": 0,
        },
        f"The prompt is the text of the record itself ({' and '.join(telling)}), up to {_TEXT_CHARS:,} characters of "
        "each; there are no histories to name.",
    )


def _learning(spec: RunSpec, dataset: Dataset) -> Choice:
    """The records' own yes and no, and nothing drawn beside it."""
    fields: dict[str, Any] = {
        "objectives": [{"task": "click"}],
        "training.negatives_per_positive": 0,
        "training.validation_metric": "auc",
        "training.validation_every": 50,
        "evaluation.click_negatives": 0,
        "evaluation.primary_metric": "auc",
    }
    if isinstance(spec.recommender, PipelineSpec):
        # Records share no histories that a retriever could learn from; the model alone gives the order.
        fields |= {
            "recommender.retriever": {"family": "popularity"},
            "recommender.model_weight": 1.0,
            "recommender.fusion_users": 50,
        }
    if getattr(ranker_of(spec.recommender), "behaviour", None) is not None:
        # Numbers about users and items come from histories; a record is its text.
        place = "recommender.ranker" if isinstance(spec.recommender, PipelineSpec) else "recommender"
        fields[f"{place}.behaviour"] = None
    n_learned = round(dataset.n_users * 0.7)
    often = ""
    if dataset.n_users < _FEW_RECORDS:
        epochs = min(_MOST_EPOCHS, max(1, round(_PROMPTS_READ / max(1, n_learned))))
        fields |= {"training.epochs": epochs, "training.batch_size": 8, "training.learning_rate": 2e-4}
        often = f" With so few records each is read up to {epochs} times, eight a step."
    return Choice(
        fields,
        "The model learns the records' own yes and no from their text: no further items are drawn as a no, and the "
        f"figure to look at is the AUC over these answers, not a ranking.{often}",
    )
