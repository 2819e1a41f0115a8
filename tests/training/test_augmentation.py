"""Training prompts with changed histories and other wordings: what is drawn, and that nothing else is touched."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from training.training_cases import fit, planted_run, planted_split

from llmrec_core.errors import SpecError, TemplateError
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.specs import RunSpec, TrainingSpec, parse_run_spec
from llmrec_core.training.augmentation import augmented, n_rounds
from llmrec_core.training.batches import BatchPlan
from llmrec_core.training.samples import SampleLists, training_lists

SHORT = {"max_samples": 32, "validation_every": 10, "early_stopping_patience": 0}


@pytest.fixture(scope="module")
def split():
    return planted_split(n_users=12)


@pytest.fixture(scope="module")
def lists(split) -> SampleLists:
    run = RunSpec.model_validate({"dataset": {"name": "d"}, "training": {"max_samples": 400}})
    return training_lists(split, run, seed=0)


def _ids(query) -> list[str]:
    return [item.item_id for item in query.history]


def _changed(lists: SampleLists, **fields) -> SampleLists:
    return augmented(lists, TrainingSpec(**fields), 6, seed=0)


def test_a_crop_is_one_stretch_of_what_is_shown(lists):
    found = _changed(lists, crop_history=1.0, augment_extent=0.5)
    starts = set()
    for before, after in zip(lists.queries, found.queries, strict=True):
        shown, kept = _ids(before)[-6:], _ids(after)
        assert len(kept) == max(1, round(0.5 * len(shown)))
        assert any(shown[at : at + len(kept)] == kept for at in range(len(shown)))
        starts.add(shown.index(kept[0]) if len(shown) == 6 else -1)
    assert len(starts - {-1}) > 2, "stretches begin anywhere"


def test_a_mask_leaves_items_out_and_keeps_the_order(lists):
    found = _changed(lists, mask_history=1.0, augment_extent=0.5)
    scattered = 0
    for before, after in zip(lists.queries, found.queries, strict=True):
        shown, kept = _ids(before)[-6:], _ids(after)
        assert len(kept) == max(1, round(0.5 * len(shown)))
        assert kept == [item for item in shown if item in kept]
        scattered += not any(shown[at : at + len(kept)] == kept for at in range(len(shown)))
    assert scattered > 5


def test_a_shuffle_moves_one_stretch_and_loses_nothing(lists):
    found = _changed(lists, reorder_history=1.0, augment_extent=0.5)
    moved = 0
    for before, after in zip(lists.queries, found.queries, strict=True):
        shown, kept = _ids(before)[-6:], _ids(after)
        assert Counter(kept) == Counter(shown)
        places = [at for at, (a, b) in enumerate(zip(shown, kept, strict=True)) if a != b]
        if places:
            moved += 1
            assert places[-1] - places[0] < max(2, round(0.5 * len(shown)))
    assert moved > len(lists.queries) / 3


def test_shares_say_how_many_and_the_rest_is_as_it_was(lists):
    found = _changed(lists, crop_history=0.3, mask_history=0.2)
    same = np.array([a is b for a, b in zip(lists.queries, found.queries, strict=True)])
    long = np.array([len(query.history) > 1 for query in lists.queries])
    assert same[~long].all()
    assert np.mean(~same[long]) == pytest.approx(0.5, abs=0.15)
    np.testing.assert_array_equal(found.items, lists.items)
    again = _changed(lists, crop_history=0.3, mask_history=0.2)
    assert [_ids(q) for q in again.queries] == [_ids(q) for q in found.queries]
    assert [_ids(q) for q in augmented(lists, TrainingSpec(crop_history=0.3, mask_history=0.2), 6, 1).queries] != [
        _ids(q) for q in found.queries
    ]
    assert _changed(lists) is lists


def test_each_pass_draws_anew_and_sees_every_list_once(lists, models, split):
    spec = TrainingSpec(mask_history=1.0, epochs=2.5, batch_size=16)
    assert n_rounds(spec) == 3
    found = augmented(lists, spec, 6, seed=0)
    n = len(lists.queries)
    assert len(found.queries) == 3 * n
    assert [_ids(q) for q in found.queries[:n]] != [_ids(q) for q in found.queries[n : 2 * n]]
    np.testing.assert_array_equal(found.labels["click"], np.tile(lists.labels["click"], 3))
    tokens = fit(planted_run(models, max_samples=16), split, models)._tokenise(found)
    plan = BatchPlan(found, tokens, spec, 0, 0, n_rounds=3)
    seen = np.concatenate(plan.schedule)
    per_pass = plan.batches_per_epoch
    first, second = (np.concatenate(plan.schedule[i * per_pass : (i + 1) * per_pass]) for i in range(2))
    assert sorted(first) == list(range(n))
    assert sorted(second) == list(range(n, 2 * n))
    assert len(seen) == pytest.approx(2.5 * n, abs=16)


def test_only_training_prompts_change_and_a_list_still_shares_its_history(models, split, monkeypatch):
    seen = {}
    whole = CrossEncoderRecommender._tokenise

    def watch(self, lists, wordings=None, *context, **what):
        tokens = whole(self, lists, wordings, *context, **what)
        seen.setdefault("validation" if wordings is None and "validation" not in seen else "training", (lists, tokens))
        return tokens

    monkeypatch.setattr(CrossEncoderRecommender, "_tokenise", watch)
    run = planted_run(models, mask_history=0.5, negatives_per_positive=3, paraphrases=("text", "yes-no"), **SHORT)
    changed = fit(run, split, models)
    lists, tokens = seen["training"]
    heads = np.array([len(set(tokens.head_of[lists.list_of == n])) for n in range(len(lists.queries))])
    assert (heads == 1).all(), "candidates of one list share one history in one wording"
    asked = seen.pop("validation")[1]
    seen.clear()
    plain = fit(planted_run(models, negatives_per_positive=3, **SHORT), split, models)
    np.testing.assert_array_equal(seen["validation"][1].heads.flat, asked.heads.flat)
    assert changed.renderer.source == plain.renderer.source
    assert changed.outcome.losses != plain.outcome.losses


def test_wordings_are_drawn_among_all_and_repeat_by_seed(models, split):
    run = planted_run(models, paraphrases=("Seen {{ n_history }} and asked {{ candidate.title }}",), **SHORT)
    recommender = fit(run, split, models)
    lists = training_lists(split, run, seed=0)
    texts = []
    for _ in range(2):
        wordings = recommender._wordings(split.dataset, recommender._network.backbone, 0)
        texts.append([prompt.text for prompt in wordings.render_many(lists.pairs())])
    assert texts[0] == texts[1]
    own = recommender.renderer.render_many(lists.pairs())
    kept = np.mean([text == prompt.text for text, prompt in zip(texts[0], own, strict=True)])
    assert 0.25 < kept < 0.75
    assert any(text.startswith("Seen ") and " and asked " in text for text in texts[0])


def test_shares_above_one_and_unknown_templates_are_refused(models, split):
    raw = {"dataset": {"name": "d"}, "training": {"crop_history": 0.7, "mask_history": 0.5}}
    with pytest.raises(SpecError, match="together are at most 1"):
        parse_run_spec(raw)
    with pytest.raises(TemplateError, match="no template 'nowhere'"):
        fit(planted_run(models, paraphrases=("nowhere",), **SHORT), split, models)


def test_without_a_history_to_show_nothing_is_drawn(lists):
    empty = replace(lists, queries=[query.with_history(()) for query in lists.queries])
    found = _changed(empty, crop_history=1.0)
    assert all(query.history == () for query in found.queries)
