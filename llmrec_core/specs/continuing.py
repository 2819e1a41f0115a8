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
#: Fields that the weights of a language model which reads prompts depend on.
READER_SHAPE = ("model", "tuning")
#: What goes on, for those who asked with something else.
_GO_ON = "cross-encoders, listwise and generative recommenders, sequential recommenders and blends with one go on"


def kept_fields(recommender: RecommenderSpec) -> tuple[str, ...]:
    """Fields of what is trained (:func:`ranker_of`) that must stay as they were in the run that is gone on from."""
    part = ranker_of(recommender)
    if isinstance(part, CrossEncoderSpec):
        return (*READER_SHAPE, "head", "label_words")
    return READER_SHAPE if isinstance(part, ListwiseSpec | GenerativeSpec) else SEQUENTIAL_SHAPE


def has_second_stage(recommender: RecommenderSpec) -> bool:
    """Whether such a recommender can be trained again on the same data, starting from a finished run's weights."""
    part = ranker_of(recommender)
    return isinstance(part, CrossEncoderSpec) and part.tuning.method != "none"


def goes_on(recommender: RecommenderSpec) -> bool:
    """Whether such a recommender, or a part of it, can go on with newer data from a finished run's weights."""
    if isinstance(recommender, PipelineSpec):
        return _trains_a_reader(recommender) or goes_on(recommender.retriever)
    if isinstance(recommender, BlendSpec):
        return any(isinstance(member, SequentialSpec) for member in recommender.members)
    return isinstance(recommender, SequentialSpec) or _trains_a_reader(recommender)


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
    if newer and isinstance(part, TwoTowerSpec):
        raise ValueError(
            "continue_from: a two-tower recommender cannot go on from a finished run's weights, it learns the vectors "
            "of all items anew. Train it anew on the newer data, or use a sequential recommender, which goes on"
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
    if isinstance(first, BlendSpec) and isinstance(later, BlendSpec):
        pairs = zip(first.members, later.members, strict=False)
        if all(changed_shape(*pair) is not None for pair in pairs if isinstance(pair[1], SequentialSpec)):
            return "no sequential member stands in the same place of both, with weights of the same shape"
    return None


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
    old, new = first.tuning, later.tuning
    changed += [f"tuning.{name}" for name in type(new).model_fields if getattr(old, name) != getattr(new, name)]
    if isinstance(later, CrossEncoderSpec):
        changed += ["head"] if first.head != later.head else []
        # The heads that are taken over answer in the words they were made of.
        changed += ["label_words"] if later.head == "label-words" and first.label_words != later.label_words else []
    return f"its recommender has another {', '.join(changed)}" if changed else None
