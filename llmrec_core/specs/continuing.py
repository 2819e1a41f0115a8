"""Which recommenders can start from the weights of a finished run, and what of their specs must stay for that."""

from __future__ import annotations

from typing import Any

from llmrec_core.specs.recommenders import (
    BlendSpec,
    CrossEncoderSpec,
    GenerativeSpec,
    ListwiseSpec,
    PipelineSpec,
    RecommenderSpec,
    SequentialSpec,
    TwoTowerSpec,
    ranker_of,
)
from llmrec_core.specs.training import TuningSpec

#: Fields that the weights of a sequential recommender depend on.
SEQUENTIAL_SHAPE = (
    "model",
    "item_fields",
    "facts",
    "use_vectors",
    "n_text",
    "width",
    "n_layers",
    "n_heads",
    "max_history",
)
#: Fields that the weights of two towers depend on; what their language model was tuned with, if it was, is another.
TWO_TOWER_SHAPE = (
    "model",
    "user",
    "item_fields",
    "facts",
    "n_text",
    "width",
    "n_layers",
    "n_heads",
    "max_history",
)
#: Fields that the weights of a language model which reads prompts depend on.
READER_SHAPE = ("model", "tuning")
#: What goes on, for those who asked with something else.
_GO_ON = (
    "cross-encoders, listwise and generative recommenders, sequential ones, two towers, and blends with one of the "
    "last two go on"
)


def kept_fields(recommender: RecommenderSpec) -> tuple[str, ...]:
    """Fields of what is trained (:func:`ranker_of`) that must stay as they were in the run that is gone on from."""
    part = ranker_of(recommender)
    if isinstance(part, CrossEncoderSpec):
        return (*READER_SHAPE, "head", "label_words")
    if isinstance(part, TwoTowerSpec):
        return (*TWO_TOWER_SHAPE, "tuning") if is_tuned(part) else TWO_TOWER_SHAPE
    return READER_SHAPE if isinstance(part, ListwiseSpec | GenerativeSpec) else SEQUENTIAL_SHAPE


def is_tuned(towers: TwoTowerSpec) -> bool:
    """Whether the language model of such towers was tuned, as far as their spec tells."""
    return towers.tuning_steps > 0 or towers.tuning != TuningSpec()


def has_second_stage(recommender: RecommenderSpec) -> bool:
    """Whether such a recommender can be trained again on the same data, starting from a finished run's weights."""
    part = ranker_of(recommender)
    return isinstance(part, CrossEncoderSpec) and part.tuning.method != "none"


def goes_on(recommender: RecommenderSpec) -> bool:
    """Whether such a recommender, or a part of it, can go on with newer data from a finished run's weights."""
    if isinstance(recommender, PipelineSpec):
        return _trains_a_reader(recommender) or goes_on(recommender.retriever)
    if isinstance(recommender, BlendSpec):
        return any(isinstance(member, SequentialSpec | TwoTowerSpec) for member in recommender.members)
    return isinstance(recommender, SequentialSpec | TwoTowerSpec) or _trains_a_reader(recommender)


def check_start(recommender: RecommenderSpec, *, newer: bool) -> None:
    """Raises: ValueError: there is nothing in it that could start from other weights; names what has.

    Args:
        newer: it is to go on with newer data, not to be trained again on the same.
    """
    if has_second_stage(recommender) or (newer and goes_on(recommender)):
        return
    part = ranker_of(recommender)
    if _reads(part) and part.tuning.method == "none":
        raise ValueError(
            f"continue_from: this {part.family} recommender trains no weights (tuning.method: none), so there are none "
            "to go on from; run it on the data as it is"
        )
    if newer:
        raise ValueError(
            f"continue_from: a {part.family} recommender has no weights to go on from, it is fitted anew; {_GO_ON}. "
            "Train it anew on the newer data"
        )
    also = "; it goes on with newer data (continual)" if goes_on(recommender) else ""
    raise ValueError(f"continue_from: a {part.family} recommender has no second stage, a cross-encoder has{also}")


def changed_shape(first: RecommenderSpec, later: RecommenderSpec) -> str | None:
    """Why ``later`` cannot go on from the weights of ``first``, in words; None: it can, as far as the specs tell."""
    if _trains_a_reader(later):
        # The second stage of two goes on from a recommender that stood alone, and the other way about.
        return _changed_reader(ranker_of(first), ranker_of(later))
    if later.family != first.family:
        return f"it is a {first.family} recommender, this is a {later.family} one"
    if isinstance(first, PipelineSpec) and isinstance(later, PipelineSpec):
        # Nothing of the ranker is trained, so it is the retriever that goes on.
        fault = changed_shape(first.retriever, later.retriever)
        return None if fault is None else f"of its retriever, {fault}"
    if isinstance(first, SequentialSpec) and isinstance(later, SequentialSpec):
        changed = [name for name in SEQUENTIAL_SHAPE if getattr(first, name) != getattr(later, name)]
        return f"its recommender has another {', '.join(changed)}" if changed else None
    if isinstance(first, TwoTowerSpec) and isinstance(later, TwoTowerSpec):
        return _changed_towers(first, later)
    if isinstance(first, BlendSpec) and isinstance(later, BlendSpec):
        pairs = zip(first.members, later.members, strict=False)
        if all(changed_shape(*pair) is not None for pair in pairs if goes_on(pair[1])):
            return "no sequential or two-tower member stands in the same place of both, with weights of the same shape"
    return None


def _changed_towers(first: TwoTowerSpec, later: TwoTowerSpec) -> str | None:
    """:func:`changed_shape` of two towers."""
    changed = [name for name in TWO_TOWER_SHAPE if getattr(first, name) != getattr(later, name)]
    if (first.id_bound > 0) != (later.id_bound > 0):
        changed.append("id_bound (towers have id deltas or not)")
    # A language model that is as it came can be tuned in any way from here on.
    if is_tuned(first) or not later.tuning_steps:
        changed += _changed_tuning(first.tuning, later.tuning)
    return f"its recommender has another {', '.join(changed)}" if changed else None


def _changed_tuning(old: TuningSpec, new: TuningSpec) -> list[str]:
    return [f"tuning.{name}" for name in TuningSpec.model_fields if getattr(old, name) != getattr(new, name)]


def _reads(part: Any) -> bool:
    return isinstance(part, CrossEncoderSpec | ListwiseSpec | GenerativeSpec)


def _trains_a_reader(recommender: RecommenderSpec) -> bool:
    """Whether a language model that reads prompts is trained in it."""
    part = ranker_of(recommender)
    return _reads(part) and part.tuning.method != "none"


def _changed_reader(first: Any, later: Any) -> str | None:
    """:func:`changed_shape` of what reads prompts."""
    if first.family != later.family:
        return f"what it trained is a {first.family} recommender, this is a {later.family} one"
    changed = ["model"] if first.model != later.model else []
    changed += _changed_tuning(first.tuning, later.tuning)
    if isinstance(later, CrossEncoderSpec):
        changed += ["head"] if first.head != later.head else []
        # The heads that are taken over answer in the words they were made of.
        changed += ["label_words"] if later.head == "label-words" and first.label_words != later.label_words else []
    return f"its recommender has another {', '.join(changed)}" if changed else None
