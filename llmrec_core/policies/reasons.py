"""Why an item is in a list or not: for one user, what each policy took out and let in, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec_core.policies.chain import Applied, Candidates, PolicyChain, Stage, rows_of
from llmrec_core.specs import (
    BlocklistSpec,
    CalibrationSpec,
    CategoryCapSpec,
    DiversitySpec,
    ExposureSpec,
    NoveltySpec,
)


@dataclass(frozen=True)
class Change:
    """One item that a policy took out of a list (``entered`` False) or let in.

    ``policy``: its name. ``code``: the policy's name, or a blocklist's own reason code. ``text``: the reason in words.
    """

    item_idx: int
    entered: bool
    policy: str
    code: str
    text: str


def changes_of(chain: PolicyChain, found: Candidates, applied: Applied, row: int) -> list[Change]:
    """What differs between the lists without and with all policies, for the user in line ``row``.

    An item that one policy takes out and another lets in again is no change. Those taken out come first, each kind in
    the order of its list.
    """
    before, changes = applied.without, {}
    for stage in applied.stages:
        old, new = _listed(before, row), _listed(stage, row)
        for item in (item for item in old if item not in new):
            changes[item] = _change(chain, found, applied, row, before, stage, item, entered=False)
        for item in (item for item in new if item not in old):
            changes[item] = _change(chain, found, applied, row, before, stage, item, entered=True)
        before = stage
    first, last = _listed(applied.without, row), _listed(applied.final, row)
    out = [changes[item] for item in first if item not in last]
    return out + [changes[item] for item in last if item not in first]


def _listed(stage: Stage, row: int) -> list[int]:
    return [int(item) for item in stage.items[row] if item >= 0]


def _change(
    chain: PolicyChain,
    found: Candidates,
    applied: Applied,
    row: int,
    before: Stage,
    stage: Stage,
    item: int,
    *,
    entered: bool,
) -> Change:
    policy = stage.policy
    assert policy is not None  # stages come after policies
    code: str = policy.policy
    if isinstance(policy, NoveltySpec):
        text = _novelty(chain, before, row, item)
    elif isinstance(policy, DiversitySpec):
        text = _diversity(chain, stage, row, item, entered)
    elif isinstance(policy, CalibrationSpec):
        text = _calibration(chain, found, before, row, item, entered)
    elif entered:
        text = "takes a place that became free"
    elif isinstance(policy, BlocklistSpec):
        code, rule = chain.blocked[item]
        text = f"blocked ({code}): {rule}"
    elif isinstance(policy, CategoryCapSpec):
        text = _cap(chain, policy, stage, row, item)
    else:
        assert isinstance(policy, ExposureSpec)
        times = int((stage.items == item).any(axis=1).sum())
        text = f"stands in {times} of {len(stage.items)} lists already, where it is ranked higher"
    return Change(item, entered, policy.policy, code, text)


def _novelty(chain: PolicyChain, before: Stage, row: int, item: int) -> str:
    users = chain.features.item_users
    typical = float(np.median(users[_listed(before, row)]))
    return (
        f"known to {users[item]:,} of {chain.features.n_users:,} people; half of the list before was known to more "
        f"than {typical:,.0f}"
    )


def _diversity(chain: PolicyChain, stage: Stage, row: int, item: int, entered: bool) -> str:
    space = chain.item_space
    others = [other for other in _listed(stage, row) if other != item]
    if not others:
        return "nothing else is in the list"
    alike = rows_of(space, np.array(others)) @ rows_of(space, np.array([item]))[0]
    nearest = others[int(alike.argmax())]
    title = chain.dataset.item_text(nearest, "title") or str(chain.dataset.item_ids[nearest])
    share = f"{max(0.0, float(alike.max())):.0%} like {title[:60]}"
    return f"at most {share}, the nearest in the list" if entered else f"{share}, which stays in the list"


def _calibration(chain: PolicyChain, found: Candidates, before: Stage, row: int, item: int, entered: bool) -> str:
    categories = chain.features.categories
    wanted, mix = found.wanted[row], categories.mix([before.items[row]])[0]
    own = categories.shares[[item]].toarray()[0] > 0
    if not own.any():
        return "has no category, so it does not help the mix"
    gap = np.where(own, (wanted - mix) * (1 if entered else -1), -np.inf)
    place = int(gap.argmax())
    return f"{categories.names[place]}: {wanted[place]:.0%} of the history, {mix[place]:.0%} of the list before"


def _cap(chain: PolicyChain, policy: CategoryCapSpec, stage: Stage, row: int, item: int) -> str:
    categories = chain.cap_categories(policy)
    counts = np.asarray((categories.shares[_listed(stage, row)].toarray() > 0).sum(axis=0))
    own = categories.shares[[item]].toarray()[0] > 0
    full = [categories.names[i] for i in np.flatnonzero(own & (counts >= policy.max_items))]
    return f"the list holds {policy.max_items} of {', '.join(full[:3])} already"
