"""Ratings from who rated what and how, and from what the items' texts say: rating factors with a prior from text.

It is :mod:`llmrec_core.baselines.rating_factors` with the text vectors of the items beside their raters in the prior of
the item factors, so that an item which hardly anybody has rated begins where items with such texts stand, and one that
many have rated goes its own way. Vectors and their whitening are those of content-kNN: from training items alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llmrec_core.baselines.rating_factors import Numbers, RatingFactorsRecommender
from llmrec_core.contracts import FitContext
from llmrec_core.recommenders.content_knn import ContentKNNRecommender
from llmrec_core.specs import ContentKNNSpec, RatingsSpec

if TYPE_CHECKING:
    from llmrec_core.data import Split


class RatingsRecommender(RatingFactorsRecommender):
    """See the module. Items without text have a prior from their raters alone."""

    family: ClassVar[str] = "ratings"
    spec_type = RatingsSpec

    def _item_features(self, split: Split, ctx: FitContext) -> Numbers | None:
        reader = ContentKNNRecommender(
            ContentKNNSpec(
                model=self.spec.model,
                item_fields=self.spec.item_fields,
                facts=self.spec.facts,
                n_text=self.spec.n_text,
            )
        )
        reader.fit(split, ctx)
        return self.spec.text_weight * reader.item_vectors().astype(np.float64)
