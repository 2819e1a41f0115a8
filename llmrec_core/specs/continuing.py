"""Which recommenders can start from the weights of a finished run, and what of their specs must stay for that."""

from __future__ import annotations

from llmrec_core.specs.recommenders import BlendSpec, CrossEncoderSpec, RecommenderSpec, SequentialSpec, ranker_of

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


def has_second_stage(recommender: RecommenderSpec) -> bool:
    """Whether such a recommender can be trained again on the same data, starting from a finished run's weights."""
    return isinstance(ranker_of(recommender), CrossEncoderSpec)


def goes_on(recommender: RecommenderSpec) -> bool:
    """Whether such a recommender, or a part of it, can go on with newer data from a finished run's weights."""
    if isinstance(recommender, BlendSpec):
        return any(isinstance(member, SequentialSpec) for member in recommender.members)
    return isinstance(recommender, SequentialSpec) or has_second_stage(recommender)


def check_start(recommender: RecommenderSpec, *, newer: bool) -> None:
    """Raises: ValueError: there is nothing in it that could start from other weights; names what has.

    Args:
        newer: it is to go on with newer data, not to be trained again on the same.
    """
    if has_second_stage(recommender) or (newer and goes_on(recommender)):
        return
    part = ranker_of(recommender)
    if newer:
        raise ValueError(
            f"continue_from: a {part.family} recommender has no weights to go on from; cross-encoders, sequential "
            "recommenders and blends with one have. Train it anew on the newer data"
        )
    also = "; it goes on with newer data (continual)" if goes_on(recommender) else ""
    raise ValueError(f"continue_from: a {part.family} recommender has no second stage, a cross-encoder has{also}")


def changed_shape(first: RecommenderSpec, later: RecommenderSpec) -> str | None:
    """Why ``later`` cannot go on from the weights of ``first``, in words; None: it can, as far as the specs tell."""
    if has_second_stage(later):
        return None
    if later.family != first.family:
        return f"it is a {first.family} recommender, this is a {later.family} one"
    if isinstance(first, SequentialSpec) and isinstance(later, SequentialSpec):
        changed = [name for name in SEQUENTIAL_SHAPE if getattr(first, name) != getattr(later, name)]
        return f"its recommender has another {', '.join(changed)}" if changed else None
    if isinstance(first, BlendSpec) and isinstance(later, BlendSpec):
        pairs = zip(first.members, later.members, strict=False)
        if all(changed_shape(*pair) is not None for pair in pairs if isinstance(pair[1], SequentialSpec)):
            return "no sequential member stands in the same place of both, with weights of the same shape"
    return None
