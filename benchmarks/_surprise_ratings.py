"""Runs inside an environment of its own that holds scikit-surprise: SVD++ with its default settings on one fold.

    python _surprise_ratings.py FOLD.npz PREDICTIONS.npz SEED

Reads users, items, ratings (training rows), asked_users, asked_items and scale; writes what it expects of the asked
rows, clipped as the library does, and its version.
"""

from __future__ import annotations

import sys

import numpy as np
import surprise


def main() -> None:
    fold = np.load(sys.argv[1], allow_pickle=False)
    reader = surprise.Reader(rating_scale=tuple(fold["scale"].tolist()))
    rows = zip(fold["users"].tolist(), fold["items"].tolist(), fold["ratings"].tolist(), strict=True)
    data = surprise.Dataset(reader)
    train = data.construct_trainset([(user, item, rating, None) for user, item, rating in rows])
    model = surprise.SVDpp(random_state=int(sys.argv[3]))
    model.fit(train)
    asked = zip(fold["asked_users"].tolist(), fold["asked_items"].tolist(), strict=True)
    expected = np.array([model.predict(user, item).est for user, item in asked])
    np.savez(sys.argv[2], expected=expected, version=np.array(surprise.__version__))


if __name__ == "__main__":
    main()
