"""Measuring recommenders: the same users and rows for all, an interval beside every number, and a plain verdict."""

from __future__ import annotations

from llmrec_core.evaluation.evaluate import evaluate
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
    "is_better",
    "ndcg_of_scores",
    "validation_metric",
]
