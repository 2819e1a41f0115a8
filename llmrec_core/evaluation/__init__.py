"""Measuring recommenders: the same users and rows for all, an interval beside every number, and a plain verdict."""

from __future__ import annotations

from llmrec_core.evaluation.evaluate import evaluate
from llmrec_core.evaluation.groups import hidden_groups, slice_means, small_group_words, suppress_small_groups
from llmrec_core.evaluation.intervals import PairedDifference
from llmrec_core.evaluation.report import EvaluationResult, MetricReport, MetricValue, Verdict
from llmrec_core.evaluation.validation import is_better, ndcg_of_scores, validation_metric

__all__ = [
    "EvaluationResult",
    "MetricReport",
    "MetricValue",
    "PairedDifference",
    "Verdict",
    "evaluate",
    "hidden_groups",
    "is_better",
    "ndcg_of_scores",
    "slice_means",
    "small_group_words",
    "suppress_small_groups",
    "validation_metric",
]
