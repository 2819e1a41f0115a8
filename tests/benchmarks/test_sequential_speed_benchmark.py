"""The race against RecTools: lists of a peer are measured as ours are, and measuring stops the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sequential_speed
from llmrec_core.recommenders.sequential import SequentialRecommender
from llmrec_core.specs import SequentialSpec


@pytest.fixture(scope="module")
def split():
    from conformance.families import tiny_split

    return tiny_split()


SPEC = SequentialSpec(model=None, width=16, n_layers=1, n_heads=2, epochs=3, patience=0, batch_size=8)


def test_lists_of_a_peer_are_measured_by_our_ndcg(split, tmp_path: Path) -> None:
    held_out = split.queries("valid")
    first, second = held_out.users[0], held_out.users[1]
    # The wanted item of one user comes first, that of another third; all others have no list.
    items = [*held_out.exclude[1][:2], held_out.targets[1][0], held_out.targets[0][0]]
    ranked = np.stack([[second, second, second, first], items, [1, 2, 3, 1]], axis=1)
    assert [len(held_out.targets[row]) for row in (0, 1)] == [1, 1]
    assert sequential_speed.ndcg(ranked, held_out) == pytest.approx((1.0 + 0.5) / len(held_out))
    sequential_speed.export(split, held_out, tmp_path)
    table = split.dataset.interactions.iloc[split.train]
    assert np.load(tmp_path / "train.npy").tolist() == table[["user_idx", "item_idx"]].to_numpy().tolist()
    assert np.load(tmp_path / "users.npy").tolist() == held_out.users.tolist()


def test_the_clock_stops_while_measuring(split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score: Callable = SequentialRecommender.score

    def slow(self, queries, candidates, *, task=None):
        time.sleep(0.4)
        return score(self, queries, candidates, task=task)

    monkeypatch.setattr(SequentialRecommender, "score", slow)
    started = time.perf_counter()
    race = sequential_speed.Race(split, SPEC, 0.0, 0, tmp_path)
    seconds = time.perf_counter() - started
    assert race.epochs == 1
    assert race.reached_s is not None
    assert 0 < race.reached_s < seconds - 0.4


def test_a_value_out_of_reach_is_told(split, tmp_path: Path) -> None:
    race = sequential_speed.Race(split, SPEC, 2.0, 0, tmp_path)
    assert race.reached_s is None
    assert race.epochs == 3
    assert 0 < race.best <= 1
    lost = {"seconds": None, "epochs": 3, "best": 0.1, "ratio": None}
    won = {"seconds": 2.0, "epochs": 4, "best": 0.2, "ratio": 5.0}
    peers = [{"seconds": seconds, "ndcg@10": 0.1} for seconds in (10, 12, 30)]
    rounds = [{"rectools": peer, "ids alone": won, "ids and texts": lost} for peer in peers]
    median = sequential_speed.summary(rounds)
    assert median["rectools_s"] == 12
    assert median["ids alone"]["ratio"] == 5.0
    assert median["ids and texts"]["ratio"] is None
    table = sequential_speed.table({"median": median})
    assert "| ours, ids alone | 2.0 | 4 | reached | **5.0** |" in table
    assert "| ours, ids and texts | | | not reached | |" in table
