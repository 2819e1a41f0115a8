"""One door: a fitted recommender and a method in, its compressed child out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from llmrec_core.compression.prune import head_importance, heads_of, least_missed_layers, with_layers, without_heads
from llmrec_core.compression.quantise import quantised, whole_model
from llmrec_core.compression.teach import teach
from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.errors import InputError
from llmrec_core.models.loading import Backbone
from llmrec_core.models.tuning import layer_stack
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.generative import GenerativeRecommender
from llmrec_core.recommenders.listwise import ListwiseRecommender
from llmrec_core.recommenders.pipeline import ranker_of
from llmrec_core.recommenders.reworked import network_of, practice, reader_of, weigh_text, with_backbone, with_reader
from llmrec_core.specs.compression import (
    CompressionSpec,
    DistilSpec,
    DistilTwoTowerSpec,
    Int4Spec,
    Int8Spec,
    OnnxSpec,
    PruneHeadsSpec,
    PruneLayersSpec,
)
from llmrec_core.training.batches import Batch, BatchPlan, sized
from llmrec_core.training.samples import SampleLists

if TYPE_CHECKING:
    from llmrec_core.data import Split


def compress(parent: Recommender, spec: CompressionSpec, split: Split, ctx: FitContext) -> Recommender:
    """The compressed child of a fitted recommender; the parent stays as it is.

    Args:
        split: its training rows teach, its validation rows judge; the test rows are not looked at.

    Raises:
        InputError: the method does not fit this recommender. RunCancelledError: ``ctx.should_stop()`` said "cancel".
    """
    if isinstance(spec, DistilTwoTowerSpec):
        from llmrec_core.compression.towers import distilled_towers

        return distilled_towers(parent, spec, split, ctx)
    if isinstance(spec, Int8Spec | Int4Spec):
        return with_reader(parent, _in_whole_numbers(ranker_of(parent), spec, ctx), None, ctx)
    reader = reader_of(parent)
    if isinstance(spec, OnnxSpec):
        from llmrec_core.compression.onnx_export import exported

        return with_reader(parent, exported(reader, spec), None, ctx)
    if isinstance(reader, ListwiseRecommender):
        raise InputError(
            f"{spec.method} is for models that read one candidate a prompt; this one orders lists.",
            where="compression.method",
            fix="Use int8 or int4.",
        )
    return _smaller(parent, spec, split, ctx)


def _in_whole_numbers(
    part: Recommender, spec: Int8Spec | Int4Spec, ctx: FitContext
) -> CrossEncoderRecommender | GenerativeRecommender:
    if not isinstance(part, GenerativeRecommender):
        reader = reader_of(part)
        return with_backbone(reader, quantised(network_of(reader).backbone, spec))
    if part.writes_as_it_came:
        ctx.emit(
            "log",
            level="warning",
            message="The adapters that learned titles become part of the weights: texts about items, which the run "
            "itself writes without them, are written with them by this child.",
        )
    return part.around(quantised(part.backbone, spec))


def _smaller(
    parent: Recommender, spec: PruneHeadsSpec | PruneLayersSpec | DistilSpec, split: Split, ctx: FitContext
) -> Recommender:
    """Fewer heads or layers, then taught by the parent."""
    reader = reader_of(parent)
    teacher = network_of(reader)
    whole = whole_model(teacher.backbone)
    ctx.emit("stage", stage="tokenizing")
    plan, validation, held_out = practice(parent, split, spec.epochs, ctx)
    weights = cast(dict[str, float], {o.task: o.weight for o in reader.run.objectives})
    n_layers, n_weights = len(layer_stack(whole.model)), _n_weights(whole)
    # Without adapters: heads and layers are found by their plain names.
    judged = network_of(with_backbone(reader, whole))
    if isinstance(spec, PruneHeadsSpec):
        batches = _judged_on(reader, held_out, spec.n_prompts, ctx)
        importance = head_importance(judged, batches, weights, spec.importance, ctx)
        small, kept = without_heads(whole, importance, spec), list(range(n_layers))
    else:
        if isinstance(spec, PruneLayersSpec):
            batches = _judged_on(reader, held_out, spec.n_prompts, ctx)
            kept = least_missed_layers(judged, spec.n_layers, batches, weights, ctx)
        else:
            kept = every_kth(n_layers, spec.n_layers)
        small = with_layers(whole, kept)
    _say(ctx, teacher.backbone, n_weights, small, kept)
    child = with_backbone(reader, small)
    if spec.epochs:
        pairs = [(place, _matched(kept, place, n_layers)) for place in range(len(kept))]
        teach(network_of(child), teacher, pairs, plan, validation, weights, spec, ctx)
    weigh_text(child, held_out, validation, ctx)
    return with_reader(parent, child, split, ctx)


def every_kth(n_layers: int, n_kept: int) -> list[int]:
    """Layers a student begins with: spread evenly over the teacher's, its last one included.

    Raises:
        InputError: the teacher has not more layers than that.
    """
    if n_kept >= n_layers:
        raise InputError(
            f"a student of {n_kept} layers is not smaller than its teacher of {n_layers}.",
            where="compression.n_layers",
            fix=f"Give 1 to {n_layers - 1}.",
        )
    return [round((place + 1) * n_layers / n_kept) - 1 for place in range(n_kept)]


def _matched(kept: list[int], place: int, n_layers: int) -> int:
    """The teacher's layer whose states a student's layer should give: the one before the next kept layer's work."""
    return (kept[place + 1] - 1) if place + 1 < len(kept) else n_layers - 1


def _judged_on(reader: CrossEncoderRecommender, held_out: SampleLists, n_prompts: int, ctx: FitContext) -> list[Batch]:
    """Validation prompts in batches, with their labels."""
    network = network_of(reader)
    training = sized(reader.run, network).model_copy(update={"epochs": 1.0})
    plan = BatchPlan(held_out, reader._tokenise(held_out), training, ctx.seed, network.backbone.pad_id)
    found, seen = [], 0
    for number in range(len(plan)):
        batch = plan[number]
        found.append(batch)
        seen += batch.n_prompts
        if seen >= n_prompts:
            break
    return found


def _say(ctx: FitContext, parent: Backbone, n_weights: int, small: Backbone, kept: list[int]) -> None:
    """What is left, in words."""
    if len(kept) < parent.n_layers:
        what = f"layers {', '.join(str(layer + 1) for layer in kept)} of {parent.n_layers} are kept"
    else:
        had, left = heads_of(parent), heads_of(small)
        n_before, n_left = (sum(map(len, heads.values())) for heads in (had, left))
        gone = [
            f"{len(had[layer]) - len(left[layer])} of layer {layer + 1}" for layer in had if left[layer] != had[layer]
        ]
        what = f"{n_left} of {n_before} attention heads are kept (gone: {', '.join(gone)})"
    numbers = f"{_n_weights(small) / 1e6:.1f} of {n_weights / 1e6:.1f} million weights are left."
    ctx.emit("log", level="info", message=f"{what}; {numbers}")


def _n_weights(backbone: Backbone) -> int:
    return sum(p.numel() for p in backbone.model.parameters())


__all__ = ["compress", "every_kth"]
