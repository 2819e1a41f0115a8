"""A split in words: what each protocol is for, and what one split did with the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llmrec_core.data.splitting.split import Split


@dataclass(frozen=True)
class ProtocolGuide:
    """``fields``: those of SplitSpec that this protocol uses beside filters and tie order, which all do."""

    title: str
    what: str
    when: str
    fields: tuple[str, ...] = ()


_SHARES = ("test_fraction", "valid_fraction")

#: Filters and order: every protocol looks at them (but "auto" keeps given parts whole).
COMMON_FIELDS = ("min_user_interactions", "min_item_interactions", "time_from", "time_to", "tie_order")

PROTOCOLS: dict[str, ProtocolGuide] = {
    "auto": ProtocolGuide(
        "Automatic",
        "The parts that came with the data, else leave-one-out.",
        "The usual choice: a split that others made with the data is kept, so that figures can be compared.",
    ),
    "given": ProtocolGuide(
        "As given",
        "Each row is in the part it was imported into.",
        "When the data came already split, or you decided the parts yourself.",
    ),
    "leave-one-out": ProtocolGuide(
        "Leave one out",
        "The last interaction of every user is the test, the one before it the validation.",
        "To ask everyone one question. Most published figures are made this way. It mixes moments in time: a model may "
        "have seen other users' later interactions.",
    ),
    "temporal": ProtocolGuide(
        "One cut in time",
        "Everything after a moment is the test, everything shortly before it the validation.",
        "Closest to going live: nothing from after the cut is known, for any user.",
        _SHARES,
    ),
    "rolling-temporal": ProtocolGuide(
        "Rolling cuts in time",
        "Several test windows one after the other; a run tests one of them, trained on what came before.",
        "To see whether a result holds over time or was luck of one window. Run each fold once.",
        ("n_folds", "fold", "test_fraction", "valid_fraction", "train_window"),
    ),
    "random": ProtocolGuide(
        "Random rows",
        "Rows are drawn by seed, whoever and whenever they are.",
        "For rating prediction on data without times. Training may know a user's later rows: figures look better than "
        "they would live.",
        (*_SHARES, "seed"),
    ),
    "random-users": ProtocolGuide(
        "Random users",
        "Whole users are held out; the earliest share of their history is known when they are asked.",
        "When the model must serve people it was never trained on, with some history each.",
        (*_SHARES, "fold_in", "seed"),
    ),
    "cold-user": ProtocolGuide(
        "New users",
        "Whole users are held out; exactly their first k interactions are known when they are asked.",
        "To see how good the first recommendations are: k = 0 for a stranger, 1, 3 or 5 after a few clicks.",
        ("known_interactions", *_SHARES, "seed"),
    ),
    "cold-item": ProtocolGuide(
        "New items",
        "A share of the items leaves training with all their interactions; the asked rows are those of these items.",
        "To see whether the model can recommend what has no interactions yet, from its text alone.",
        (*_SHARES, "rank_among", "seed"),
    ),
    "group-stratified": ProtocolGuide(
        "The same share of each group",
        "Rows are drawn so that every group gives the same share to each part; folds take turns as the test.",
        "To compare groups (active and quiet users, genres, regions) with enough test rows in each.",
        ("group_by", "n_groups", "n_folds", "fold", "valid_fraction", "seed"),
    ),
    "records": ProtocolGuide(
        "One question a record",
        "The last row of each user is the question, for training or held out; what stands before it is known.",
        "For instruction records: each is a user of its own, who is asked about the item that the record judges. What "
        "a record tells before that is never trained on. Data that came split stays in its parts.",
        (*_SHARES, "seed"),
    ),
}


def describe(split: Split) -> str:
    """The protocol in words, with sizes."""
    spec = split.spec
    n_rows = len(split.train) + len(split.known) + len(split.valid) + len(split.test)
    items = split.dataset.interactions["item_idx"].to_numpy(np.int64)
    with_rows = len(np.flatnonzero(np.bincount(items[split._order], minlength=split.dataset.n_items)))
    known = f"{len(split.known):,} known before the question, " if len(split.known) else ""
    ranked = f"{len(split.offered('test')):,}"
    if spec.protocol == "cold-item" and spec.rank_among == "withheld":
        ranked += " withheld"
    parts = [
        _cut(split),
        *split.notes,
        _filters(split),
        _order(split),
        f"{split.n_users:,} users, {with_rows:,} items with interactions, {n_rows:,} rows: "
        f"{len(split.train):,} train, {known}{len(split.valid):,} validation, {len(split.test):,} test.",
        f"Rankings are over {ranked} items without those the user already had.",
    ]
    return " ".join(part for part in parts if part)


def _cut(split: Split) -> str:
    spec = split.spec
    first, second = split.cut_times or (float("nan"), float("nan"))
    drawn = f"drawn with seed {spec.seed}"
    shares = f"{spec.test_fraction:.0%} {{}} for test and {spec.valid_fraction:.0%} for validation, {drawn}"
    later = "training may hold rows later than a held-out one, its history does not"
    match spec.protocol:
        case "given":
            return "Given: every row is in the part that came with the data."
        case "leave-one-out":
            return (
                "Leave-one-out: each user's last interaction is the test target, the one before it the validation "
                "target; users with fewer than 3 interactions are for training only."
            )
        case "temporal":
            return (
                f"Temporal: validation starts at {date(first)}, test at {date(second)} (asked: the last "
                f"{spec.test_fraction:.0%} of rows for test, {spec.valid_fraction:.0%} before them for validation)."
            )
        case "rolling-temporal":
            low, stop = split.window or (-np.inf, np.inf)
            n_all = len(split.dataset.interactions)
            n_left_out = n_all - sum(map(len, (split.train, split.known, split.valid, split.test)))
            return (
                f"Rolling temporal, fold {spec.fold} of {spec.n_folds}: validation starts at {date(first)}, test at "
                f"{date(second)}{f' and ends before {date(stop)}' if np.isfinite(stop) else ''} (each window "
                f"{spec.test_fraction:.0%} of rows); training is "
                f"{'everything before' if spec.train_window == 'expanding' else f'sliding, from {date(low)} on'}; "
                f"{n_left_out:,} rows are left out."
            )
        case "random":
            return f"Random: {shares.format('of rows')}; {later}."
        case "random-users":
            return (
                f"Random users: {shares.format('of users')}; none of their rows is trained on. The first "
                f"{spec.fold_in:.0%} of each one's interactions are known when asked, at least one; the others are "
                "the targets, at least one."
            )
        case "cold-user":
            k = spec.known_interactions
            first_k = {0: "Nothing is known of them", 1: "Their first interaction alone is known"}.get(
                k, f"Exactly their first {k} interactions are known"
            )
            return (
                f"Cold users: {shares.format('of users')}, among those with more than {k} interactions; none of their "
                f"rows is trained on. {first_k} when asked (beside their profile); all later ones are the targets."
            )
        case "cold-item":
            n = len(split.withheld.get("test", ())), len(split.withheld.get("valid", ()))
            return (
                f"Cold items: {shares.format('of items')} ({n[0]:,} and {n[1]:,} items); no row of theirs is trained "
                f"on, and none is drawn as a negative in training. The targets are their rows; {later}."
            )
        case "group-stratified":
            by = {
                "activity": f"{spec.n_groups} groups of users by number of interactions",
                "popularity": f"{spec.n_groups} groups of items by number of interactions",
            }.get(spec.group_by, spec.group_by.replace(":", " field ", 1))
            return (
                f"Group-stratified by {by}: of each group's rows, fold {spec.fold} of {spec.n_folds} "
                f"({1 / spec.n_folds:.0%}) for test and {spec.valid_fraction:.0%} for validation, each within one row, "
                f"{drawn}; {later}."
            )
        case "records":
            return (
                "One question a record: the last row of each user is trained on or asked, "
                f"{'as the data came split' if split.notes else shares.format('of users')}; all rows before it are "
                "known and never trained on."
            )
    return ""


def _filters(split: Split) -> str:
    spec, words = split.spec, []
    if spec.time_from or spec.time_to:
        low = f"from {spec.time_from}" if spec.time_from else ""
        high = f"up to {spec.time_to}" if spec.time_to else ""
        words.append(f"Only interactions {' '.join(w for w in (low, high) if w)}.")
    if spec.min_user_interactions > 1 or spec.min_item_interactions > 1:
        words.append(
            f"Users with at least {spec.min_user_interactions} and items with at least "
            f"{spec.min_item_interactions} interactions, filtered until both hold."
        )
    return " ".join(words)


def _order(split: Split) -> str:
    spec = split.spec
    ties = {"file": "in file order", "item_id": "by item id"}[spec.tie_order]
    if spec.protocol == "given":
        ties = f"as training, validation, test, then {ties}"
    if not split.dataset.meta.has_timestamps:
        given = "the given parts and then " if spec.protocol == "given" else ""
        return f"The data has no timestamps, so {given}file order stands for time."
    if spec.protocol in ("temporal", "rolling-temporal"):
        return f"Within a user, interactions of equal time are ordered {ties}; the cuts never part equal times."
    return f"Interactions of equal time are ordered {ties}."


def date(seconds: float) -> str:
    """``seconds`` since 1970 as a moment in UTC, for people."""
    if not np.isfinite(seconds):
        return "the end" if seconds > 0 else "the start"
    moment = np.datetime64(0, "s") + np.timedelta64(int(seconds), "s")
    return f"{str(moment).replace('T', ' ')} UTC"
