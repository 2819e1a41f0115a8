"""Short hands of the tests of compression."""

import numpy as np

from llmrec_core.recommenders import registry


def scores(recommender, split):
    """Of every item for every validation user."""
    queries = split.queries("valid").queries
    return recommender.score(queries, np.tile(np.arange(split.dataset.n_items), (len(queries), 1)))


def saved(recommender, split, ctx, folder):
    """What comes back from disk."""
    folder.mkdir()
    recommender.save(folder)
    return registry.load(folder, split.dataset, ctx)
