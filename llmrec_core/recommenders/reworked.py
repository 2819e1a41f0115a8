"""A fitted recommender taken apart: the same one around another language model, and what it was trained on.

Compression needs both; a fit needs neither.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.errors import InputError
from llmrec_core.models.loading import Backbone
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.generative import GenerativeRecommender
from llmrec_core.recommenders.pipeline import PipelineRecommender, ranker_of
from llmrec_core.specs import TuningSpec
from llmrec_core.training.batches import BatchPlan, sized
from llmrec_core.training.behaviour import Behaviour
from llmrec_core.training.features import BehaviourFeatures
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.samples import SampleLists, like_threshold, scale_ratings, training_lists, validation_lists
from llmrec_core.training.validation import Validation

if TYPE_CHECKING:
    from llmrec_core.data import Split


def reader_of(recommender: Recommender) -> CrossEncoderRecommender:
    """The part of a recommender that reads prompts.

    Raises:
        InputError: it has none.
    """
    part = ranker_of(recommender)
    if not isinstance(part, CrossEncoderRecommender) or not isinstance(part._network, PromptNetwork):
        raise InputError(
            f"a {recommender.family} recommender has no cross-encoder of PyTorch that could be compressed so.",
            where="parent_run",
            fix="Choose a run whose model reads prompts (a cross-encoder, or two stages with one); int8 and int4 are "
            "for models that write titles too.",
        )
    return part


def network_of(reader: CrossEncoderRecommender) -> PromptNetwork:
    return reader._fitted()[0]


def with_backbone(reader: CrossEncoderRecommender, backbone: Backbone) -> CrossEncoderRecommender:
    """The same recommender around another model, which it saves whole: prompts, heads (copied) and behaviour stay."""
    network, _, _ = reader._fitted()
    child = copy.copy(reader)
    # What it was trained like is over: no adapter is left, and all its weights are its own.
    child.spec = reader.spec.model_copy(
        update={"tuning": TuningSpec(method="full"), "share_history": network.shared and reader.spec.share_history}
    )
    child._tuned = frozenset()
    # Of its own kind: networks of lists give letters where others give one number a prompt.
    child._network = type(network)(
        backbone,
        copy.deepcopy(network.heads),
        pooling=network.pooling,
        shared=network.shared,
        autocast=network.autocast,
        mask_id=network.mask_id,
    )
    child._freeze(child._network)
    return child


def with_reader(
    recommender: Recommender,
    reader: CrossEncoderRecommender | GenerativeRecommender,
    split: Split | None,
    ctx: FitContext,
) -> Recommender:
    """The whole recommender with its part that holds a language model replaced.

    Args:
        split: where given, a pipeline finds the weight of its parts on validation users again; else it stays.
    """
    if not isinstance(recommender, PipelineRecommender):
        return reader
    child = copy.copy(recommender)
    child.ranker = reader
    if split is not None:
        child.fusion_grid = {}
        child._choose_weight(split, ctx)
    return child


def practice(
    recommender: Recommender, split: Split, epochs: float, ctx: FitContext
) -> tuple[BatchPlan, Validation, SampleLists]:
    """The parent's training prompts in batches, its validation, and the validation samples.

    Drawn as its own training drew them, with the same seed; what behaviour says of them stands beside them as it did
    there.
    """
    reader = reader_of(recommender)
    network, _, _ = reader._fitted()
    pool = recommender.hard_negatives(split) if isinstance(recommender, PipelineRecommender) else None
    lists = training_lists(split, reader.run, ctx.seed, pool)
    if reader.behaviour is not None:
        lists = replace(lists, offsets=_out_of_fold(reader.behaviour, reader, split, ctx).of_training(lists))
    tokens = reader._tokenise(lists, ctx=ctx)
    training = sized(reader.run, network).model_copy(update={"epochs": max(epochs, 1e-6)})
    plan = BatchPlan(lists, tokens, training, ctx.seed, network.backbone.pad_id)
    held_out = _held_out(reader, split, ctx)
    return plan, _validation(reader, held_out, ctx), held_out


def validation_of(recommender: Recommender, split: Split, ctx: FitContext) -> Validation:
    """What the parent's training watched.

    Raises:
        SpecError: the watched metric needs a head that it has not.
    """
    part = ranker_of(recommender)
    if isinstance(part, GenerativeRecommender):
        return part.validation(split, ctx)
    reader = reader_of(recommender)
    return _validation(reader, _held_out(reader, split, ctx), ctx)


def weigh_text(child: CrossEncoderRecommender, held_out: SampleLists, validation: Validation, ctx: FitContext) -> None:
    """Chooses the weight of a child's text beside behaviour on validation, as a fit does; the parent's stays."""
    if child.behaviour is None:
        return
    behaviour = copy.copy(child.behaviour)
    behaviour.text_weight = dict(behaviour.text_weight)
    child.behaviour = behaviour
    child._join(behaviour, held_out, validation, ctx)


def _held_out(reader: CrossEncoderRecommender, split: Split, ctx: FitContext) -> SampleLists:
    """Validation samples, with what behaviour says of them."""
    lists = validation_lists(split, reader.run, ctx.seed)
    return lists if reader.behaviour is None else replace(lists, offsets=reader.behaviour.of_lists(lists))


def _out_of_fold(behaviour: Behaviour, reader: CrossEncoderRecommender, split: Split, ctx: FitContext) -> Behaviour:
    """The same weights over tables that are learned again: a fit forgets those that leave the asked users out."""
    threshold = like_threshold(split.dataset, reader.run)
    found = copy.copy(behaviour)
    found.features = BehaviourFeatures.learn(split, behaviour.spec, threshold, ctx)
    return found


def _validation(reader: CrossEncoderRecommender, lists: SampleLists, ctx: FitContext) -> Validation:
    _, _, dataset = reader._fitted()
    low, high = dataset.rating_scale or (0.0, 1.0)
    threshold = like_threshold(dataset, reader.run)
    return Validation(
        reader.run.training.validation_metric,
        lists,
        reader._tokenise(lists, ctx=ctx, what="validation"),
        cast(dict[str, float], {o.task: o.weight for o in reader.run.objectives}),
        rating_scale=(low, high),
        liked_at=0.5 if threshold is None else float(scale_ratings([threshold], (low, high))[0]),
    )
