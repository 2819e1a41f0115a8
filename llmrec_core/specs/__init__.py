"""What a run is to do: frozen pydantic models, shared by the pages, the command line and Python.

Every field has a one-line ``description``; the expert form on the Fine-tune screen and ``--set`` are
generated from them. Unknown keys are errors. A spec is identified by the hash of its canonical JSON.
"""

from __future__ import annotations

from llmrec_core.specs.base import (
    CLICK_METRICS,
    LOWER_IS_BETTER,
    RANKING_METRICS,
    RATING_METRICS,
    Part,
    Spec,
    Task,
    canonical_json,
    check_metric,
)
from llmrec_core.specs.recommenders import (
    FAMILIES,
    ALSSpec,
    BaselineSpec,
    BiasKNNSpec,
    BlendSpec,
    BPRSpec,
    CrossEncoderSpec,
    EASESpec,
    ItemKNNSpec,
    MemberSpec,
    PipelineSpec,
    PopularitySpec,
    RecommenderSpec,
    RetrieverSpec,
    SequentialSpec,
    SVDSpec,
    UserKNNSpec,
)
from llmrec_core.specs.run import DatasetRef, EvaluationSpec, RunSpec, parse_run_spec, spec_errors
from llmrec_core.specs.split import Protocol, SplitSpec
from llmrec_core.specs.training import ObjectiveSpec, PromptSpec, TrainingSpec, TuningSpec

__all__ = [
    "CLICK_METRICS",
    "FAMILIES",
    "LOWER_IS_BETTER",
    "RANKING_METRICS",
    "RATING_METRICS",
    "ALSSpec",
    "BPRSpec",
    "BaselineSpec",
    "BiasKNNSpec",
    "BlendSpec",
    "CrossEncoderSpec",
    "DatasetRef",
    "EASESpec",
    "EvaluationSpec",
    "ItemKNNSpec",
    "MemberSpec",
    "ObjectiveSpec",
    "Part",
    "PipelineSpec",
    "PopularitySpec",
    "PromptSpec",
    "Protocol",
    "RecommenderSpec",
    "RetrieverSpec",
    "RunSpec",
    "SVDSpec",
    "SequentialSpec",
    "Spec",
    "SplitSpec",
    "Task",
    "TrainingSpec",
    "TuningSpec",
    "UserKNNSpec",
    "canonical_json",
    "check_metric",
    "parse_run_spec",
    "spec_errors",
]
