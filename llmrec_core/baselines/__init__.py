"""Floors: recommenders without a language model, fitted and measured in the same run as the model.

They keep the Recommender contract, learn from training rows only, and import no PyTorch.
"""

from __future__ import annotations

from llmrec_core.baselines._storage import catalogue_hash
from llmrec_core.baselines.item_knn import ItemKNNRecommender
from llmrec_core.baselines.popularity import PopularityRecommender
from llmrec_core.contracts import Recommender
from llmrec_core.specs import ItemKNNSpec, PopularitySpec

#: Family name (as in the spec) -> class; ``BASELINES[spec.family](spec)`` builds an unfitted one.
BASELINES: dict[str, type[PopularityRecommender] | type[ItemKNNRecommender]] = {
    "popularity": PopularityRecommender,
    "item-knn": ItemKNNRecommender,
}


def build_baseline(spec: PopularitySpec | ItemKNNSpec) -> Recommender:
    """An unfitted baseline of ``spec.family``."""
    if isinstance(spec, PopularitySpec):
        return PopularityRecommender(spec)
    return ItemKNNRecommender(spec)


__all__ = ["BASELINES", "ItemKNNRecommender", "PopularityRecommender", "build_baseline", "catalogue_hash"]
