"""Floors: recommenders without a language model, fitted and measured in the same run as the model.

They keep the Recommender contract, learn from training rows only, and import no PyTorch.
"""

from __future__ import annotations

from llmrec_core.baselines.item_knn import ItemKNNRecommender
from llmrec_core.baselines.popularity import PopularityRecommender

#: Family name (as in the spec) -> class; ``BASELINES[spec.family](spec)`` builds an unfitted one.
BASELINES: dict[str, type[PopularityRecommender] | type[ItemKNNRecommender]] = {
    "popularity": PopularityRecommender,
    "item-knn": ItemKNNRecommender,
}

__all__ = ["BASELINES", "ItemKNNRecommender", "PopularityRecommender"]
