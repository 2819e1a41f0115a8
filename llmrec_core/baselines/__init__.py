"""Floors: recommenders without a language model, fitted and measured in the same run as the model.

They keep the Recommender contract, learn from training rows only, and import no PyTorch.
"""

from __future__ import annotations

from llmrec_core.baselines._history import HistoryRecommender
from llmrec_core.baselines.bias_knn import BiasKNNRecommender
from llmrec_core.baselines.ease import EASERecommender
from llmrec_core.baselines.factors import ALSRecommender, BPRRecommender, SVDRecommender
from llmrec_core.baselines.item_knn import ItemKNNRecommender
from llmrec_core.baselines.popularity import PopularityRecommender
from llmrec_core.baselines.rating_factors import RatingFactorsRecommender
from llmrec_core.baselines.trend import TrendRecommender
from llmrec_core.baselines.user_knn import UserKNNRecommender
from llmrec_core.contracts import Recommender

#: Family name (as in the spec) -> class; ``BASELINES[spec.family](spec)`` builds an unfitted one.
BASELINES: dict[str, type[Recommender]] = {
    family.family: family
    for family in (
        PopularityRecommender,
        ItemKNNRecommender,
        UserKNNRecommender,
        EASERecommender,
        SVDRecommender,
        ALSRecommender,
        BPRRecommender,
        TrendRecommender,
        BiasKNNRecommender,
        RatingFactorsRecommender,
    )
}

__all__ = [
    "BASELINES",
    "ALSRecommender",
    "BPRRecommender",
    "BiasKNNRecommender",
    "EASERecommender",
    "HistoryRecommender",
    "ItemKNNRecommender",
    "PopularityRecommender",
    "RatingFactorsRecommender",
    "SVDRecommender",
    "TrendRecommender",
    "UserKNNRecommender",
]
