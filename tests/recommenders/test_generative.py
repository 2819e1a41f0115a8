"""The generative family: titles, parity of search and scoring, what it learns, texts, resume, and what it refuses."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conformance.families import tiny_items, tiny_split
from conformance.test_protocols import tiny
from tiny_models import VOCABULARY, WORDS, write_tiny_bert, write_tiny_llama
from training.training_cases import Events
from transformers import LlamaModel

from llmrec_core.contracts import Continued, FitContext, HistoryItem, Query, rank_rows
from llmrec_core.data import Dataset, Split, make_split
from llmrec_core.errors import InputError, ModelError, RunCancelledError, RunFailedError, SpecError
from llmrec_core.models.label_words import language_head
from llmrec_core.recommenders import _texts, registry
from llmrec_core.recommenders.generative import GenerativeRecommender
from llmrec_core.specs import RunSpec, SplitSpec
from llmrec_core.training import scoring
from llmrec_core.training.objectives import weighted_loss

NEXT = "{% for item in history %}{{ item.title }}. {% endfor %}next: {{ candidate.title }}"
TRAINING = {"max_samples": 32, "batch_size": 16, "validation_every": 4, "validation_samples": 32, "precision": "fp32"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_llama(folder / "tiny-llama")
    return folder


def run_of(models: Path, training: dict[str, Any] | None = None, **spec: Any) -> RunSpec:
    family = {"family": "generative", "model": str(models / "tiny-llama"), "tuning": {"method": "none"}, **spec}
    return RunSpec.model_validate(
        {
            "dataset": {"name": "tiny"},
            "recommender": family,
            "prompt": {"source": NEXT, "max_tokens": 96, "max_history": 4},
            "training": {**TRAINING, **(training or {})},
        }
    )


def fitted(
    split: Split, models: Path, training: dict[str, Any] | None = None, ctx: dict[str, Any] | None = None, **spec: Any
) -> GenerativeRecommender:
    run = run_of(models, training, **spec)
    built = registry.build(run, run.recommender)
    assert isinstance(built, GenerativeRecommender)
    built.fit(split, FitContext(workspace_models=models, device="cpu", **(ctx or {})))
    return built


def renamed(titles: dict[int, str]) -> Split:
    items = tiny_items()
    for row, title in titles.items():
        items.loc[row, "title"] = title
    return tiny_split(items=items)


# ---- titles and scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["model", "popularity"])
def test_a_beam_as_wide_as_the_catalogue_ranks_as_scoring_everything_does(models, prior):
    split = renamed({5: "film 6 of the night", 7: "film 6", 8: "film 6 of the night"})
    model = fitted(split, models, prior=prior, beams=split.dataset.n_items)
    asked = split.queries("test")
    everything = np.arange(split.dataset.n_items)
    scores = model.score(asked.queries, everything)
    assert np.allclose(np.exp(scores.astype(np.float64)).sum(1), 1.0, atol=1e-5), "one distribution over all items"
    for row, seen, ranking in zip(scores, asked.exclude, model.top_k(asked.queries, 14, asked.exclude), strict=True):
        wanted = rank_rows(row[None], 14, [seen])[0]
        np.testing.assert_allclose(ranking.scores, wanted.scores, atol=1e-4)
        np.testing.assert_allclose(row[ranking.items], wanted.scores, atol=1e-4)


def test_equal_titles_share_by_popularity_then_by_id(models):
    split = renamed(dict.fromkeys((5, 6, 12, 13), "film 6 of the night"))
    model = fitted(split, models)
    twins = np.array([5, 6, 12, 13])
    scores = model.score([Query("a")], twins)[0]
    weight = split.train_item_counts[twins] + 1.0
    np.testing.assert_allclose(np.exp(scores - np.logaddexp.reduce(scores)), weight / weight.sum(), rtol=1e-5)
    order = [item for item in model.top_k([Query("a")], 14)[0].items.tolist() if item in twins]
    assert order == sorted(twins.tolist(), key=lambda item: (-split.train_item_counts[item], item))


def test_without_history_and_training_popularity_orders(models):
    """The model is calibrated: before it has read anything it has no opinion of its own."""
    split = tiny_split()
    scores = fitted(split, models, prior="popularity").score([Query("a")], np.arange(14))[0]
    weight = split.train_item_counts + 1.0
    np.testing.assert_allclose(np.exp(scores), weight / weight.sum(), rtol=1e-4)
    own = fitted(split, models).score([Query("a")], np.arange(14))[0]
    assert np.abs(own - scores).max() > 0.1


def test_kept_tokens_are_those_that_were_made(models, tmp_path):
    """Of what is read before titles; and a training on them is the training without."""
    split, tuned = tiny_split(), {"tuning": {"method": "full"}, "training": {"learning_rate": 1e-3}}
    plain = fitted(split, models, **tuned)
    queries = split.queries("valid").queries
    assert plain.renderer.heads(queries) == [plain.renderer.heads([query])[0] for query in queries]
    asked = (split.queries("test").queries, np.arange(split.dataset.n_items))
    for read in (False, True):
        events = Events()
        kept = fitted(split, models, ctx={"token_cache": tmp_path / "tiny", "emit": events.emit}, **tuned)
        assert sum("read from the cache" in message for message in events.messages.split("\n")) == 2 * read
        np.testing.assert_array_equal(kept.score(*asked), plain.score(*asked))
    run = run_of(models)
    shorter = registry.build(
        run.model_copy(update={"prompt": run.prompt.model_copy(update={"max_history": 2})}), run.recommender
    )
    shorter.fit(split, FitContext(workspace_models=models, device="cpu"))
    assert isinstance(shorter, GenerativeRecommender)
    assert plain.renderer.identity() != shorter.renderer.identity()


def test_titles_as_tokens(models):
    long = " ".join(WORDS[:40])
    split = renamed({1: f"{long} three", 2: f"{long} four", 6: "star [SEP] wars", 7: "star\nwars"})
    prompts = fitted(split, models, max_title_tokens=12).renderer
    words = [[VOCABULARY[token] for token in title] for title in prompts.titles]
    assert len(words[1]) == len(words[2]) == 12
    assert (words[1][-1], words[2][-1]) == ("three", "four"), "what tells long titles apart stands at their end"
    assert words[1][:7] == words[2][:7] == WORDS[:7]
    assert prompts.title(3) == "i03", "an item without title is called by its id"
    assert "".join(words[4]) == "我喜欢的电影"
    assert prompts.end not in prompts.titles[6], "a control token in a title is text"
    assert words[7] == ["star", "wars"]
    assert prompts.titles[0] == [VOCABULARY.index(word) for word in ("film", "0", "of", "the", "night")]


def test_what_is_read_never_depends_on_what_is_written(models):
    split = tiny_split()
    prompts = fitted(split, models).renderer
    query = split.queries("test").queries[0]
    shown = [prompts.render(query, item) for item in (0, 4)]
    starts = [prompt.spans[-1].start for prompt in shown]
    assert shown[0].text[: starts[0]] == shown[1].text[: starts[1]]
    assert shown[1].text.endswith("next: 我喜欢的电影")
    assert [(span.kind, span.ref) for span in shown[1].spans][-1] == ("candidate", "title")
    head = prompts.heads([query])[0]
    assert [VOCABULARY[token] for token in head][-2:] == ["next", ":"]
    assert prompts.heads([Query("a"), Query("b")])[0] == prompts.heads([Query("b")])[0]


def test_a_hidden_title_says_nothing(models):
    model = fitted(tiny_split(), models)
    query = Query("a", (HistoryItem("i01"),), hidden_fields=frozenset({"title"}))
    assert np.allclose(model.score([query], np.arange(14)), -np.log(14))


def test_an_explanation_adds_up(models):
    from llmrec_core.explanation.explain import explain

    split = tiny_split()
    model = fitted(split, models)
    query = split.queries("test").queries[0]
    found = explain(model, split.dataset, query, 5, max_players=5)
    assert found.base_value == pytest.approx(-np.log(14), abs=1e-5), "nothing known: all titles are alike"
    assert found.target == pytest.approx(float(model.score([query], np.array([5]))[0, 0]), abs=1e-5)
    assert found.additivity_gap < 1e-5
    assert {player.kind for player in found.players} == {"history", "history-group", "candidate"} or {
        player.kind for player in found.players
    } == {"history", "candidate"}


# ---- learning --------------------------------------------------------------------------------------------------------


def ring(shuffled: bool = False, n_users: int = 24) -> Split:
    """Everybody walks around a ring of ten titles; ``shuffled`` destroys the order."""
    rng = np.random.default_rng(0)
    titles = [
        "red star",
        "red toy",
        "blue star",
        "blue city",
        "green man",
        "dark city",
        "dark man",
        "old war",
        "new",
        "life",
    ]
    rows = []
    for user in range(n_users):
        walk = [(user + step) % 10 for step in range(8)]
        walk = rng.permutation(walk).tolist() if shuffled else walk
        rows += [(f"u{user:02d}", f"i{item}", 10.0 * step) for step, item in enumerate(walk)]
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(10)], "title": titles})
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return make_split(Dataset.from_frames("ring", frame, items), SplitSpec())


LONG = {
    "max_samples": None,
    "epochs": 14,
    "learning_rate": 5e-3,
    "validation_every": 1000,
    "early_stopping_patience": 0,
}


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_planted_order_is_learnt_and_a_shuffled_one_is_not(models, shuffled):
    split = ring(shuffled)
    model = fitted(split, models, LONG, tuning={"method": "full"})
    asked = split.queries("test")
    first = [ranking.items[0] for ranking in model.top_k(asked.queries, 1, asked.exclude)]
    hits = np.mean([item in targets for item, targets in zip(first, asked.targets, strict=True)])
    # Three of ten titles are left: a guess hits a third.
    assert hits < 0.65 if shuffled else hits > 0.9


@pytest.mark.parametrize("loss", ["titles", "words"])
def test_the_loss_is_minus_the_log_probability_of_what_is_written(models, loss):
    split = tiny_split()
    model = fitted(split, models, loss=loss)
    parts = model._fitted()
    plan = model._plan(split, FitContext(workspace_models=models), parts)
    batch = plan[0]
    values = parts.network(batch.packed)
    found = float(weighted_loss(values, batch.labels, {"rank": 1.0})) * batch.labels.n_lists
    total = 0.0
    for sample in batch.lists.tolist():
        head, tail = plan.tokens.heads[sample].tolist(), plan.tokens.tails[sample].tolist()
        if loss == "titles":
            beginning = parts.network.read(head)
            leaf = np.array([plan._samples.leaves[sample]])
            total -= parts.decoder.log_probs(beginning, leaf)[0]
        else:
            assert tail[-1] == parts.prompts.end
            with torch.inference_mode():
                hidden = parts.backbone.model(input_ids=torch.tensor([head + tail])).last_hidden_state[0]
                logits = language_head(parts.backbone, range(len(VOCABULARY)))(hidden).log_softmax(-1)
            total -= sum(float(logits[len(head) - 1 + place, token]) for place, token in enumerate(tail))
    assert found == pytest.approx(total, abs=1e-2)


def test_withheld_titles_are_no_continuations_while_training(models):
    split = tiny("cold-item")
    model = fitted(split, models)
    plan = model._plan(split, FitContext(workspace_models=models), model._fitted())
    offered = split.offered("train")
    assert len(plan._trie.leaf_of) == len(offered) < split.dataset.n_items
    # Columns and biases are those of the same place among all titles.
    decoder = model._fitted().decoder
    for title, item in enumerate(offered.tolist()):
        own, whole = plan._trie.path(int(plan._trie.leaf_of[title])), decoder.trie.path(int(decoder.trie.leaf_of[item]))
        assert (plan._column[own] == decoder.trie.column[whole]).all()
        assert np.allclose(plan._bias[own], decoder.bias.numpy()[whole])


def test_resume_equals_uninterrupted_training(models, tmp_path):
    split = ring(n_users=12)
    training = {"max_samples": 32, "batch_size": 8, "epochs": 2, "learning_rate": 1e-3, "validation_samples": 16}
    tuning = {"method": "lora", "lora_rank": 2}
    whole = fitted(split, models, training, tuning=tuning)
    steps = [0]

    def stop() -> str | None:
        steps[0] += 1
        return "cancel" if steps[0] > 5 else None

    with pytest.raises(RunCancelledError):
        fitted(split, models, training, {"checkpoint_dir": tmp_path, "should_stop": stop}, tuning=tuning)
    events = Events()
    resumed = fitted(split, models, training, {"resume_from": tmp_path, "emit": events.emit}, tuning=tuning)
    assert "Going on from checkpoint-4" in events.messages
    asked = split.queries("test").queries[:4]
    everything = np.arange(10)
    np.testing.assert_allclose(resumed.score(asked, everything), whole.score(asked, everything), atol=1e-5)
    with pytest.raises(ModelError, match="other data"):
        fitted(ring(True, 12), models, training, {"resume_from": tmp_path}, tuning=tuning)


def test_zero_shot_trains_nothing_and_tells_the_floors(models):
    from llmrec_core.baselines import PopularityRecommender

    split = tiny_split()
    floor = PopularityRecommender()
    floor.fit(split, FitContext())
    events = Events()
    model = fitted(split, models, ctx={"emit": events.emit, "floors": {"popularity": floor}})
    assert not events.of("train")
    assert model.outcome is None
    assert [event["name"] for event in events.of("baseline")] == ["popularity"]
    assert [event["step"] for event in events.of("validation")] == [0]
    assert set(events.of("validation")[0]["metrics"]) == {"loss", "auc"}


@pytest.mark.parametrize("method", ["none", "full", "top-layers"])
def test_what_was_trained_is_saved_and_loaded(models, tmp_path, method):
    split = tiny_split()
    tuning = {"method": method, "n_top_layers": 1}
    model = fitted(split, models, {"max_samples": 16}, tuning=tuning)
    model.save(tmp_path)
    assert (tmp_path / "trained.safetensors").exists() == (method != "none")
    ctx = FitContext(workspace_models=models, device="cpu")
    loaded = registry.load(tmp_path, split.dataset, ctx)
    asked, everything = split.queries("test").queries, np.arange(14)
    np.testing.assert_allclose(loaded.score(asked, everything), model.score(asked, everything), atol=1e-5)


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_is_checked_and_falls_back_to_a_plain_sentence(models, monkeypatch):
    from llmrec_core.recommenders import _texts

    split = tiny_split()
    model = fitted(split, models, text_attempts=2)
    query = Query("u0", (HistoryItem("i01", 5.0), HistoryItem("i02", 1.0)))
    said = ["it is like film 9 of the night .", "a comedy , no drama , good for the night ."]
    ids = {text: model._fitted().backbone.tokenizer.encode(text).ids for text in said}
    answers = iter(said)
    asked: list[dict[str, Any]] = []

    def write(beginning: object, words: object, **options: Any) -> list[int]:
        asked.append(options)
        return list(ids[next(answers)])

    monkeypatch.setattr(_texts, "write_text", write)
    found = model.write(query, 5)
    assert found.source == "fields"
    assert found.text == "film 5 of the night: category drama. Chosen before: film 1 of the night."
    assert [(claim.kind, claim.text) for claim in found.rejected[0][1]] == [("title", "film 9 of the night")]
    assert [claim.text for claim in found.rejected[1][1]] == ["comedy"]
    assert all(claim.backed_by for claim in found.claims)
    assert [option["temperature"] > 0 for option in asked] == [False, True]
    assert "category: drama" in found.prompt
    assert "film 1 of the night" in found.prompt
    assert "film 2 of the night" not in found.prompt, "what the user disliked is no reason"
    asked.clear()
    good, vague = "film 5 of the night is a good story .", "a good story of the night ."
    ids |= {text: model._fitted().backbone.tokenizer.encode(text).ids for text in (good, vague)}
    answers = iter([vague, good])
    named = model.write(query, 5)
    assert (named.text, named.source) == (good, "model")
    assert [(claim.text, claim.backed_by) for claim in named.claims] == [("film 5 of the night", ("title",))]
    assert named.rejected == ((vague, ()),), "a text that does not name the item may be about anything"


def test_texts_are_drawn_by_seed(models):
    split = tiny_split()
    model = fitted(split, models, text_attempts=3, text_tokens=16)
    query = split.queries("test").queries[0]
    one, again, other = (model.write(query, 2, seed) for seed in (0, 0, 1))
    assert one == again
    assert other.seed == 1
    with pytest.raises(InputError, match="outside the catalogue"):
        model.write(query, 99)


@pytest.mark.parametrize("field", ["blurb", "review"])
def test_texts_are_learned_from_descriptions_and_reviews(models, field):
    split = tiny_split()
    items, table = (
        split.dataset.items.copy(),
        split.dataset.interactions[["user_id", "item_id", "rating", "timestamp"]].copy(),
    )
    if field == "blurb":
        items["blurb"] = "a good story of the night ."
    else:
        table["review"] = "a good story of the night ."
    table["user_id"], table["item_id"] = table["user_id"].astype(str), table["item_id"].astype(str)
    split = make_split(Dataset.from_frames("told", table, items), SplitSpec())
    training = {"max_samples": 16, "epochs": 24, "learning_rate": 1e-2, "validation_every": 1000}
    events = Events()
    model = fitted(split, models, training, {"emit": events.emit}, tuning={"method": "full"}, text_field=field)
    assert "16 titles to write and " in events.messages
    query = split.queries("test").queries[0]
    found = model.write(query, 5)
    assert found.text == "a good story of the night ."
    assert found.source == "model"
    assert "a good story" not in found.prompt
    with pytest.raises(InputError, match="no column 'plot'"):
        fitted(split, models, text_field="plot")


def test_of_newer_data_new_reviews_are_learned(models, tmp_path):
    """Old ones only as far as the share of old interactions goes."""
    split = tiny_split()
    table = split.dataset.interactions[["user_id", "item_id", "rating", "timestamp"]].astype(
        {"user_id": str, "item_id": str}
    )
    table["review"] = ["a good story of the night ." if row % 7 < 3 else "a red one ." for row in range(len(table))]
    split = make_split(Dataset.from_frames("told", table, split.dataset.items), SplitSpec())
    first = fitted(split, models, text_field="review")
    first.save(tmp_path)
    older = split.train[split.dataset.interactions["review"].to_numpy()[split.train] == "a red one ."]
    events = Events()
    ctx = {"emit": events.emit, "start_from": tmp_path, "continued": Continued(split.dataset, older, 0.0)}
    model = fitted(split, models, {"max_samples": 200}, ctx, text_field="review")
    parts = model._fitted()
    writer = _texts.TextWriter(parts.dataset, parts.prompts, parts.backbone, parts.chat, model.spec)
    context = FitContext(continued=ctx["continued"])  # type: ignore[arg-type]
    texts = [tail for _, tail in _texts.texts_to_learn(split, writer, 200, model.spec, context)]
    assert len(texts) == len(split.train) - len(older)
    assert {tuple(tail) for tail in texts} == {tuple(writer.tokens_of("a good story of the night ."))}
    context.continued = None
    assert len(list(_texts.texts_to_learn(split, writer, 200, model.spec, context))) == len(split.train)


def test_adapters_that_learned_titles_write_no_texts(models):
    split = tiny_split()
    query = split.queries("test").queries[0]
    came = fitted(split, models, text_tokens=16)
    tuned = fitted(split, models, {"learning_rate": 0.05}, text_tokens=16, tuning={"method": "lora"})
    everything = np.arange(14)
    scores = tuned.score([query], everything)
    assert np.abs(scores - came.score([query], everything)).max() > 1e-2
    assert tuned.write(query, 2) == came.write(query, 2)
    np.testing.assert_array_equal(tuned.score([query], everything), scores)
    assert not any(parameter.requires_grad for parameter in tuned._fitted().backbone.model.parameters())


def test_a_chat_template_is_used_and_a_broken_one_is_not(models, tmp_path):
    split = tiny_split()
    folder = write_tiny_llama(tmp_path / "chatty")
    template = folder / "chat_template.jinja"
    template.write_text("{% for m in messages %}user: {{ m['content'] }}{% endfor %} answer:")
    query = Query("u0")
    text = fitted(split, tmp_path, model=str(folder)).write(query, 5).prompt
    assert text.startswith("user: item: film 5 of the night\ncategory: drama\n\nRecommend film 5 of the night")
    assert text.endswith("answer:")
    template.write_text("{{ ''.__class__ }}")
    assert fitted(split, tmp_path, model=str(folder)).write(query, 5).prompt.endswith("\n\nText:")


# ---- memory that runs out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["model", "popularity"])
def test_where_memory_runs_out_titles_and_texts_are_the_same(models, monkeypatch, prior):
    """Rankings, texts, and the calibration that reads all branches: all in smaller parts, from the prompt on."""
    # A title a row of four words out of two: 13 places where something is decided.
    split = renamed({item: " ".join(words) for item, words in enumerate([*product(("star", "toy"), repeat=4)][:14])})
    whole = fitted(split, models, prior=prior, text_tokens=16, beams=14)
    asked = split.queries("test")
    rankings, scores = whole.top_k(asked.queries, 5, asked.exclude), whole.score(asked.queries, np.arange(14))
    text = whole.write(asked.queries[0], 2)
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 512)
    honest, widths = LlamaModel.forward, []

    def small_memory(self, *args, **options):
        widths.append(options["input_ids"].numel())
        if widths[-1] > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, *args, **options)

    def parted(ask, model):
        """The answer with memory as short as that, and that it was short."""
        scoring.portion(model._fitted().network).halved = 0
        widths.clear()
        found = ask(model)
        assert max(widths) > 10
        assert widths[-1] <= 10
        return found

    monkeypatch.setattr(LlamaModel, "forward", small_memory)
    model = fitted(split, models, prior=prior, text_tokens=16, beams=14)
    for found, wanted in zip(parted(lambda m: m.top_k(asked.queries, 5, asked.exclude), model), rankings, strict=True):
        np.testing.assert_array_equal(found.items, wanted.items)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    np.testing.assert_allclose(parted(lambda m: m.score(asked.queries, np.arange(14)), model), scores, atol=1e-4)
    assert parted(lambda m: m.write(asked.queries[0], 2), model) == text


def test_a_training_in_parts_is_the_training_and_validations_tell_of_theirs(models, monkeypatch):
    split, tuning = ring(n_users=12), {"method": "full"}
    training = {"max_samples": 24, "batch_size": 8, "validation_every": 2, "validation_samples": 64}
    plain, events = Events(), Events()
    whole = fitted(split, models, training, {"emit": plain.emit}, tuning=tuning)
    honest = LlamaModel.forward

    def small_memory(self, *args, **options):
        if options["input_ids"].numel() > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, *args, **options)

    monkeypatch.setattr(LlamaModel, "forward", small_memory)
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 160)
    parted = fitted(split, models, training, {"emit": events.emit}, tuning=tuning)
    assert "batches are now computed in 4 parts" in events.messages
    assert "prompts are now scored 40 tokens at once" in events.messages
    np.testing.assert_allclose(parted.outcome.losses, whole.outcome.losses, rtol=1e-5)
    for one, other in zip(events.of("validation"), plain.of("validation"), strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-4)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (MemoryError(), RunFailedError, r"prompt\.max_tokens: .*memory is too small"),
        (RuntimeError("another fault"), RuntimeError, r"^another fault$"),
    ],
)
def test_writing_that_cannot_go_on_says_why(models, monkeypatch, fault, kind, said):
    split = tiny_split()
    model = fitted(split, models)
    query = split.queries("test").queries[0]

    def fails(*_, **__):
        raise fault

    monkeypatch.setattr(LlamaModel, "forward", fails)
    for ask in (lambda: model.top_k([query], 3), lambda: model.write(query, 2), lambda: model.score([query], [1])):
        with pytest.raises(kind, match=said):
            ask()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_write_is_refused(models, tmp_path):
    split = tiny_split()
    write_tiny_bert(tmp_path / "bert")
    with pytest.raises(SpecError, match="encoder"):
        fitted(split, tmp_path, model=str(tmp_path / "bert"))
    with pytest.raises(InputError, match="model reads 512"):
        fitted(split, models, max_title_tokens=500)
    run = run_of(models)
    with pytest.raises(InputError, match="not fitted"):
        registry.build(run, run.recommender).score([Query("a")], np.array([0]))
