"""Settings that would do nothing, or that a training would only refuse once it has begun: refused with their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from llmrec_core.specs.training import TrainingSpec, TuningSpec
from llmrec_core.specs.tricks import AUGMENTING, TRICKS, TrickFields

#: Validation context of specs that were submitted already: a finished run must stay readable.
STORED = "stored"
#: What families that read no prompts have a use for too.
READ_BY_ALL = ("like_threshold",)
#: Families of whole recommenders that train on prompts; a pipeline does by its second stage.
PROMPT_READERS = tuple(part.model_fields["family"].default for part in (CrossEncoderSpec, GenerativeSpec, PipelineSpec))
#: Ways of tuning in which word embeddings stay as they are, whatever ``freeze_embeddings`` says.
EMBEDDINGS_STAY = ("top-layers", "none")
#: Objectives with labels that can be softened.
SOFTENED = ("click", "rank")


def check_effects(
    recommender: RecommenderSpec, tasks: Sequence[str], training: TrainingSpec, *, newer: bool = False
) -> None:
    """Raises: ValueError: a field that is not at its default does nothing in such a training; names it and says why.

    Args:
        newer: it goes on with newer data, from weights that may have been tuned before.
    """
    for path, part in _tuned_parts(recommender):
        if isinstance(part, TwoTowerSpec):
            _check_tower(path, part, newer=newer)
        if not part.tuning.freeze_embeddings and not has_embeddings_to_train(part):
            what = "generative" if isinstance(part, GenerativeSpec) else part.tuning.method
            raise ValueError(f"{path}.tuning.freeze_embeddings: {what} keeps word embeddings as they are; leave it out")
    ranker = ranker_of(recommender)
    if not isinstance(ranker, CrossEncoderSpec | ListwiseSpec | GenerativeSpec):
        for name in unread_training(recommender):
            if getattr(training, name) != TrainingSpec.model_fields[name].default:
                raise ValueError(f"training.{name}: {_without_prompts(ranker, name)}")
        return
    _check_tricks(ranker, tasks, training)
    _check_weights(ranker.tuning, training)


def unread_training(recommender: RecommenderSpec) -> tuple[str, ...]:
    """Fields of ``training`` that such a recommender has no use for."""
    if isinstance(ranker_of(recommender), CrossEncoderSpec | ListwiseSpec | GenerativeSpec):
        return ()
    # Tricks first: where several are set, they have the longer story.
    return tuple(name for name in dict.fromkeys((*TRICKS, *TrainingSpec.model_fields)) if name not in READ_BY_ALL)


def has_embeddings_to_train(part: CrossEncoderSpec | ListwiseSpec | GenerativeSpec | TwoTowerSpec) -> bool:
    """Whether ``tuning.freeze_embeddings`` decides anything there."""
    return not isinstance(part, GenerativeSpec) and part.tuning.method not in EMBEDDINGS_STAY


def _tuned_parts(recommender: Any, path: str = "recommender") -> Iterator[tuple[str, Any]]:
    """(dotted path, spec) of every part that tunes a language model."""
    if isinstance(recommender, PipelineSpec):
        yield from _tuned_parts(recommender.retriever, f"{path}.retriever")
        yield from _tuned_parts(recommender.ranker, f"{path}.ranker")
    elif isinstance(recommender, BlendSpec):
        for number, member in enumerate(recommender.members):
            yield from _tuned_parts(member, f"{path}.members.{number}")
    elif isinstance(getattr(recommender, "tuning", None), TuningSpec):
        yield path, recommender


def _check_tower(path: str, part: TwoTowerSpec, *, newer: bool) -> None:
    if part.tuning_steps and part.tuning.method == "none":
        raise ValueError(f"{path}.tuning_steps: with tuning.method none these steps train nothing; choose another or 0")
    # Towers that go on keep adapters without tuning them further; whether there are any is asked of the first run.
    if part.tuning_steps or newer:
        return
    for name, info in TuningSpec.model_fields.items():
        if getattr(part.tuning, name) != info.default:
            raise ValueError(
                f"{path}.tuning.{name}: the language model stays as it came while {path}.tuning_steps is 0; set that "
                "too, for example 300"
            )


def _check_tricks(ranker: Any, tasks: Sequence[str], training: TrainingSpec) -> None:
    tuning = ranker.tuning
    drops = training.dropout > 0 or (tuning.method in ("lora", "adalora") and tuning.lora_dropout > 0)
    if training.r_drop and tuning.method != "none" and not drops:
        raise ValueError(
            "training.r_drop: without dropout both passes are the same; set training.dropout, for example .1"
        )
    if isinstance(ranker, GenerativeSpec):
        for name in (*AUGMENTING, "label_smoothing"):
            if getattr(training, name):
                raise ValueError(f"training.{name}: a generative recommender has none; leave it out")
    if training.label_smoothing and not set(tasks) & set(SOFTENED):
        raise ValueError(
            f"training.label_smoothing: it softens labels of click and rank; what is learned ({', '.join(tasks)}) has "
            "none. Leave it out, or add one of these objectives"
        )


def _check_weights(tuning: TuningSpec, training: TrainingSpec) -> None:
    if training.weights != "stochastic":
        return
    if training.precision == "fp32":
        raise ValueError(
            "training.weights: stochastic rounds bf16 weights, and training.precision is fp32; set that to bf16, or "
            "leave this on masters"
        )
    if tuning.method not in ("full", "top-layers") and tuning.freeze_embeddings:
        raise ValueError(
            f"training.weights: stochastic rounds bf16 weights, and what {tuning.method} trains is small and float32; "
            "leave it on masters, or train layers themselves (tuning.method full or top-layers)"
        )


def _without_prompts(recommender: RecommenderSpec, name: str) -> str:
    """Why a field of ``training`` means nothing to a family that reads no prompts, and what does there."""
    if name not in TrickFields.model_fields:
        # Of a blend, weights are something else.
        own = name in type(recommender).model_fields and name != "weights"
        instead = f"use recommender.{name}" if own else "leave it out"
        return f"a {recommender.family} recommender does not read it; {instead}"
    reason = f"it changes training prompts, and a {recommender.family} recommender reads none"
    if not isinstance(recommender, SequentialSpec):
        return f"{reason}; leave it out"
    return (
        f"{reason}; its histories are varied by recommender.reverse and recommender.dropout, its labels softened by "
        "recommender.label_smoothing"
    )
