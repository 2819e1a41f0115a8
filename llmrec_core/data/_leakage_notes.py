"""Facts about a split that no protocol forbids and that a reader of its figures should know."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmrec_core.contracts import ITEM
from llmrec_core.data._leakage_facts import Check, Facts, made
from llmrec_core.data.splitting.split import distinct

#: |rank correlation| of ids and times from which ids are said to tell the time.
_TELLING = 0.5


def other_users_future(facts: Facts) -> Check:
    split = facts.split
    first = float(facts.times[split.test].min())
    later = split.train[facts.times[split.train] > first]
    share = len(later) / max(1, len(split.train))
    return made(
        "global-time",
        "Training rows later than the first test row",
        len(split.train),
        len(later),
        (),
        f"{share:.0%} of the training rows happened after the first test row. The protocol allows it: what is popular "
        "later is known then, so figures are a little higher than live ones. The temporal protocols do without.",
        hard=False,
    )


def repeats(facts: Facts) -> Check:
    split, n_items = facts.split, facts.dataset.n_items
    held = facts.users[facts.held] * n_items + facts.items[facts.held]
    rows = np.concatenate([split.train, split.known])
    trained = facts.users[rows] * n_items + facts.items[rows]
    sought = distinct(held)
    if len(sought):
        place = np.minimum(np.searchsorted(sought, trained), len(sought) - 1)
        met = np.zeros(len(sought), bool)
        met[place[sought[place] == trained]] = True
        bad = facts.held[met[np.searchsorted(sought, held)]]
    else:
        bad = facts.held
    return made(
        "repeats",
        "Held-out pairs that training has too",
        len(facts.held),
        len(bad),
        facts.rows(bad, lambda row: f", item {facts.dataset.item_ids[facts.items[row]]}"),
        "The same user and item, once in training and once held out. Rankings never ask for them; click and rating "
        "figures do.",
        hard=False,
    )


def filters(facts: Facts) -> Check:
    """A k-core counts all rows: users and items that owe their place to held-out rows."""
    spec = facts.spec
    users = np.bincount(facts.train_users, minlength=facts.dataset.n_users)
    items = np.bincount(facts.train_items, minlength=facts.dataset.n_items)
    weak_users = np.flatnonzero((users > 0) & (users < spec.min_user_interactions))
    weak_items = np.flatnonzero((items > 0) & (items < spec.min_item_interactions))
    return made(
        "filters",
        "Filters that count held-out rows",
        int((users > 0).sum() + (items > 0).sum()),
        len(weak_users) + len(weak_items),
        facts.item_names(weak_items),
        f"{len(weak_users):,} users and {len(weak_items):,} items pass the filter only together with their held-out "
        "rows. Usual, and the same for every model.",
        hard=False,
    )


def rating_scale(facts: Facts) -> Check:
    scale = facts.dataset.rating_scale
    ratings = facts.dataset.interactions["rating"].to_numpy(np.float64)[facts.split.train]
    ratings = ratings[~np.isnan(ratings)]
    if scale is None or not len(ratings):
        return made("scale", "Rating scale", 0, 0, (), "There is no rating scale.", hard=False)
    low, high = float(ratings.min()), float(ratings.max())
    return made(
        "scale",
        "Rating scale known from training alone",
        len(ratings),
        int((low, high) != (scale[0], scale[1])),
        (f"training has {low:g} to {high:g}, the data {scale[0]:g} to {scale[1]:g}",) if (low, high) != scale else (),
        "The scale is taken from the whole data, as one would know it of a product.",
        hard=False,
    )


def id_times(facts: Facts) -> Check:
    """Do the source's own ids follow the time? Rank correlation of item number and first interaction."""
    if not facts.timed:
        return made("id-order", "Ids that tell the time", 0, 0, (), "The data has no times.", hard=False)
    first = np.full(facts.dataset.n_items, np.inf)
    np.minimum.at(first, facts.items, facts.times)
    seen = np.flatnonzero(np.isfinite(first))
    rho = _rank_correlation(seen.astype(np.float64), first[seen])
    telling = abs(rho) >= _TELLING
    return made(
        "id-order",
        "Ids that tell the time",
        len(seen),
        int(telling),
        (f"rank correlation {rho:+.2f}",) if telling else (),
        f"Rank correlation of item ids and first interactions: {rho:+.2f}. "
        + (
            "The source numbers its items as they come: keep ids out of prompts, or they tell how new an item is."
            if telling
            else "Ids say little about when an item appeared."
        ),
        hard=False,
    )


def _rank_correlation(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Spearman's rho with mean ranks for ties; 0 where one side does not vary."""
    if len(left) < 3:
        return 0.0
    ranks = []
    for values in (left, right):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks.append(((ends - counts + ends - 1) / 2)[inverse])
    a, b = (r - r.mean() for r in ranks)
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else 0.0


def twin_texts(facts: Facts) -> Check:
    """Held-out items whose words are those of another item in training: a text model cannot tell them apart."""
    fields = [column for column in facts.dataset.items.columns if column != ITEM]
    items = facts.dataset.items
    # An item without text of its own has its id as title, so it has no twin.
    code = pd.util.hash_pandas_object(items[fields].astype(str), index=False).to_numpy()
    held = np.unique(facts.items[facts.held])
    trained = np.unique(facts.items[facts.split.train])
    counts = pd.Series(code[trained]).value_counts()
    own = np.isin(held, trained).astype(np.int64)
    others = counts.reindex(code[held]).fillna(0).to_numpy().astype(np.int64) - own
    bad = held[others > 0]
    return made(
        "twins",
        "Held-out items with the text of a trained one",
        len(held),
        len(bad),
        facts.item_names(bad),
        "Another item with the same words in every field is in training: a text model gives both the same answer.",
        hard=False,
    )
