"""Prompts: golden texts, the budget, spans, hidden fields, and hostile values shown as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prompts.prompt_data import query_of, small_dataset

from llmrec_core.contracts import HistoryItem, Query, RenderedPrompt
from llmrec_core.data import Dataset
from llmrec_core.errors import InputError, SpecError, TemplateError
from llmrec_core.prompts import STARTERS, PromptRenderer, WhitespaceCounter, render
from llmrec_core.specs import PromptSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "prompts"
DATA = small_dataset()
COUNTER = WhitespaceCounter()


def renderer(source: str | None = None, dataset: Dataset = DATA, **spec: object) -> PromptRenderer:
    return PromptRenderer(PromptSpec(source=source, **spec), dataset, COUNTER)  # type: ignore[arg-type]


def pieces(prompt: RenderedPrompt) -> list[tuple[str, str, str]]:
    return [(span.kind, span.ref, prompt.text[span.start : span.end]) for span in prompt.spans]


# ---- golden ----------------------------------------------------------------------------------------------------------

CASES = {
    "typical": ("u1", "c", {"scene": "evening"}),
    "empty": ("nobody", "h", {}),
    "chinese": ("u2", "e", {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("template", STARTERS)
def test_golden(template: str, case: str) -> None:
    """Read and approved by a person; a change of a starter shows here as a diff."""
    user, item, context = CASES[case]
    spec = {"template": template, "profile_fields": ("age", "job"), "item_fields": ("category", "maker")}
    prompt = renderer(**spec).render(query_of(DATA, user, context=context), DATA.item_idx(item))
    assert prompt.text + "\n" == (GOLDEN / f"{template}-{case}.txt").read_text(encoding="utf-8")
    assert prompt.n_tokens <= 96
    assert (prompt.dropped_history, prompt.clipped_fields) == (0, ())


@pytest.mark.parametrize("template", STARTERS)
def test_starters_work_with_whatever_is_there(template: str) -> None:
    bare = Dataset.from_frames("bare", pd.DataFrame({"user_id": ["1", "1"], "item_id": ["x", "y"]}))
    history = (HistoryItem("x"), HistoryItem("gone", float("nan"), float("inf")), HistoryItem("y", 2.5, -1e30))
    for query in (Query("1"), Query("1", history, {"age": "3"}, {"scene": "bus"})):
        prompt = renderer(dataset=bare, template=template, show_time=True).render(query, 1)
        assert pieces(prompt)[-1] == ("candidate", "title", "y")
        assert "None" not in prompt.text
        assert "nan" not in prompt.text
    shown = {(kind, ref) for kind, ref, _ in pieces(prompt)}
    assert shown == {("context", "scene"), *(("history", str(i)) for i in range(3)), ("candidate", "title")}


# ---- what templates see ----------------------------------------------------------------------------------------------


def test_variables() -> None:
    source = (
        "{{ n_history }}|{% for h in history %}{{ h.title }}/{{ h.rating }}/{{ h.time }}/{{ h.maker }}/{{ h.liked }};"
        "{% endfor %}|{{ liked|map(attribute='item_id')|join(',') }}|{{ disliked|map(attribute='title')|join(',') }}|"
        "{{ neutral|length }}|{{ profile.age }}|{{ profile.job }}|{{ context.scene }}|{{ candidate.blurb }}|"
        "{% for name, value in candidate.named %}{{ name }}={{ value }};{% endfor %}"
    )
    query = query_of(DATA, "u1", context={"scene": "noon"})
    spec = {
        "profile_fields": ("age", "job"),
        "show_time": True,
        "item_fields": ("maker", "category"),
        "max_tokens": 300,
    }
    prompt = renderer(source, **spec).render(query, DATA.item_idx("g"))
    assert prompt.text == (
        "3|Lantern Bay/5/1970-01-02/Ode Films/yes;Tin Parade/2/1970-01-03//no;Brass & Thunder/4/1970-01-04/Kite/yes;"
        "|a,g|Tin Parade|0|34|keeper|noon|Two bands, one stage.|maker=Kite;category=Action;"
    )
    assert pieces(prompt)[:4] == [
        ("history", "0", "Lantern Bay"), ("history", "0", "5"), ("history", "0", "1970-01-02"),
        ("history", "0", "Ode Films"),
    ]  # fmt: skip
    assert pieces(prompt)[-6:] == [
        ("profile", "age", "34"), ("profile", "job", "keeper"), ("context", "scene", "noon"),
        ("candidate", "blurb", "Two bands, one stage."), ("candidate", "maker", "Kite"),
        ("candidate", "category", "Action"),
    ]  # fmt: skip


def test_ratings_and_times_can_be_withheld() -> None:
    source = "{% for h in history %}{{ h.rating is none }} {{ h.time is none }} {% endfor %}{{ liked|length }}"
    query = query_of(DATA, "u1")
    assert renderer(source, show_ratings=False).render(query, 0).text == "yes yes " * 3 + "0"
    assert renderer(source, show_time=True).render(query, 0).text == "no no " * 3 + "2"


def test_missing_fields_name_the_known_ones() -> None:
    query = query_of(DATA, "u1")
    for source, known in (
        ("{{ candidate.year }}", "title, fields, named, letter, item_id, category, maker, blurb"),
        ("{{ history[0].year }}", "title, fields, rating, time, liked, item_id, category"),
        ("{{ profile.year }}", "known fields are: age"),
        ("{{ context.year }}", "known fields are: none"),
    ):
        with pytest.raises(TemplateError, match=r"line 1: there is no field 'year'") as refused:
            renderer(source, profile_fields=("age",)).render(query, 0)
        assert known in str(refused.value)
    # A chosen profile field that this user has no value for is empty, not an error.
    assert renderer("{{ profile.age }}.", profile_fields=("age",)).render(Query("u9"), 0).text == "."


def test_unknown_names_are_refused_early() -> None:
    with pytest.raises(TemplateError, match="'nope'; known are question, text, list, multi-level"):
        renderer(template="nope")
    with pytest.raises(SpecError, match=r"item_fields.*'genre'; known columns are: item_id, title, category"):
        renderer(item_fields=("genre",))
    with pytest.raises(SpecError, match=r"profile_fields.*'user_id'; known columns are: age, job"):
        renderer(profile_fields=("user_id",))
    for idx in (-1, 8):
        with pytest.raises(InputError, match="outside the catalogue of 8 items"):
            renderer().render(Query("u1"), idx)


def test_hidden_candidate_fields_read_unknown() -> None:
    query = replace(query_of(DATA, "u1"), hidden_fields=frozenset({"title", "maker"}))
    source = (
        "{{ candidate.title }} {{ candidate.fields }} {% for h in history %}{{ h.title }},{{ h.maker }};{% endfor %}"
    )
    prompt = renderer(source, item_fields=("category", "maker")).render(query, DATA.item_idx("a"))
    # The history may hold the same item; there its fields stay.
    assert prompt.text.startswith("unknown Drama, Sea, unknown Lantern Bay,Ode Films;")
    assert [p for p in pieces(prompt) if p[0] == "candidate"] == [
        ("candidate", "title", "unknown"),
        ("candidate", "category", "Drama, Sea"),
        ("candidate", "maker", "unknown"),
    ]
    # The plain query afterwards is not served from what was prepared for the hidden one.
    assert renderer(source).render(replace(query, hidden_fields=frozenset()), 0).text.startswith("Lantern Bay Drama")


# ---- the budget ------------------------------------------------------------------------------------------------------


def long_history(n: int) -> tuple[HistoryItem, ...]:
    ids = ["a", "b", "c", "e", "f", "g", "h"]
    return tuple(HistoryItem(ids[i % 7], 1.0 + i % 5, float(i)) for i in range(n))


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates leave no room for longer ones, so that the search for the longest history shows by itself."""
    monkeypatch.setattr(render, "_MOST_ROOM", 0.0)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("template", STARTERS)
def test_the_oldest_history_goes_first(template: str) -> None:
    query = Query("u1", long_history(40))
    spec = {"template": template, "max_tokens": 60, "max_history": 20}
    prompt = renderer(**spec).render(query, 2)
    kept = {int(ref) for kind, ref, _ in pieces(prompt) if kind == "history"}
    assert 0 < len(kept) < 20
    # Positions count in the whole history, and the newest stay.
    assert kept == set(range(40 - len(kept), 40))
    assert prompt.dropped_history == 20 - len(kept)
    assert prompt.n_tokens == COUNTER.count([prompt.text])[0] <= 60
    # One entry more would not have fitted: without a budget, that prompt is longer than 60 tokens.
    more = renderer(**{**spec, "max_tokens": 4096, "max_history": len(kept) + 1}).render(query, 2)
    assert more.dropped_history == 0
    assert more.n_tokens > 60
    # And what was kept is what would be shown if only that had been offered.
    same = renderer(**{**spec, "max_tokens": 4096, "max_history": len(kept)}).render(query, 2)
    assert (same.text, same.spans) == (prompt.text, prompt.spans)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize(
    "source",
    [
        "{% for h in history[-3:] %}{{ h.title }} {% endfor %}{{ candidate.title }}",
        "{% for h in history if h.rating and h.rating >= 4 %}{{ h.title }} {% endfor %}{{ candidate.title }}",
        "{% for h in history %}{{ h.title if h.rating is none else 'x' }} {% endfor %}{{ candidate.title }}",
        "{{ history|map(attribute='blurb')|join(' ') }} {{ candidate.title }}",
        "{{ context.scene }} {% for h in history %}{{ h.title }} {% endfor %}{{ candidate.title }}",
        "{{ candidate.title }}",
    ],
)
@pytest.mark.parametrize("budget", [16, 30, 60])
def test_the_longest_history_that_fits_is_found(source: str, budget: int) -> None:
    """The search gives what trying every length from the longest down gives."""
    query = Query("u1", long_history(30), {}, {"scene": "bus"})
    wide = renderer(source, max_tokens=4096, max_history=30)
    lengths = range(min(30, 25), -1, -1)
    by_trial = next(
        (n, text)
        for n in lengths
        for text in [wide.render(replace(query, history=query.history[len(query.history) - n :]), 1).text]
        if COUNTER.count([text])[0] <= budget
    )
    prompt = renderer(source, max_tokens=budget, max_history=25).render(query, 1)
    assert prompt.text == by_trial[1]


def catalogue(lengths: Sequence[int]) -> Dataset:
    """Items of so many words."""
    titles = [" ".join(f"w{n}" for n in range(length)) for length in lengths]
    items = pd.DataFrame({"item_id": [f"i{n:03}" for n in range(len(lengths))], "title": titles, "kind": "odd"})
    return Dataset.from_frames("words", pd.DataFrame({"user_id": ["1"], "item_id": ["i000"]}), items)


def entries(prompt: RenderedPrompt) -> list[str]:
    return [ref for kind, ref, _ in pieces(prompt) if kind == "history"]


SEEN = "Seen: {% for h in history %}{{ h.title }}; {% endfor %}now {{ candidate.title }} {{ candidate.kind }}?"


def test_candidates_of_one_user_stand_behind_one_history() -> None:
    # Of 200 items, 198 take 1 to 7 words; one takes 12, one 40.
    data = catalogue([1 + n % 7 for n in range(198)] + [12, 40])
    query = Query("1", tuple(HistoryItem(f"i{n:03}") for n in range(40)))
    made = renderer(SEEN, data, max_tokens=64, max_history=30)
    prompts = made.render_many([(query, item) for item in range(200)])
    kept = [entries(prompt) for prompt in prompts]
    assert len(set(map(tuple, kept[:198]))) == 1
    # Behind a candidate of seven words one entry more did not fit; a longer candidate takes the rest from its own.
    longest = max(prompt.n_tokens for prompt in prompts[:198])
    assert longest <= 64 < longest + COUNTER.count([f"{'w ' * (1 + int(kept[0][0]) % 7)};"])[0]
    assert [len(history) for history in kept[197:]] == sorted([len(history) for history in kept[197:]], reverse=True)
    assert len(kept[199]) < len(kept[198]) < len(kept[0])
    # Whoever else is asked about, and whatever of the candidate is hidden.
    assert [made.render(query, item) for item in (199, 0, 198)] == [prompts[item] for item in (199, 0, 198)]
    hidden = made.render(replace(query, hidden_fields=frozenset({"title", "kind"})), 6)
    assert entries(hidden) == kept[6]


def test_long_candidates_leave_history_to_short_ones() -> None:
    """Where every second item takes most of the budget, a quarter of it is kept free and no more."""
    data = catalogue([2, 40] * 10)
    query = Query("1", tuple(HistoryItem("i000") for _ in range(40)))
    short, long = renderer(SEEN, data, max_tokens=64, max_history=40).render_many([(query, 0), (query, 1)])
    # "i0 i0 kind?" takes 4 of the 16 that are kept.
    assert 64 - 12 - 3 <= short.n_tokens <= 64 - 12
    assert len(entries(long)) < len(entries(short))


def test_no_room_is_kept_where_the_candidate_does_not_come_last() -> None:
    data = catalogue([1, 20, 20])
    query = Query("1", tuple(HistoryItem("i000") for _ in range(80)))
    source = "{{ candidate.title }} after {% for h in history %}{{ h.title }} {% endfor %}"
    assert renderer(source, data, max_tokens=64, max_history=80).render(query, 0).n_tokens == 64
    # Nor where nothing tells how long candidates are: this one cannot be drawn for most items.
    source = (
        "{% for h in history %}{{ h.title }} {% endfor %}{{ candidate.title if candidate.title|length < 3 else 1/0 }}"
    )
    assert renderer(source, data, max_tokens=64, max_history=80).render(query, 0).n_tokens == 64


def test_costly_candidates_are_looked_at_for_as_long_as_one_prompt_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[render.Program] = []
    original = render.Program.drawn
    monkeypatch.setattr(render.Program, "drawn", lambda self, given: (drawn.append(self), original(self, given))[1])
    costly = "{% for n in range(20) %}{% for m in range(900) %}{% if m < 0 %}x{% endif %}{% endfor %}{% endfor %}"
    made = renderer(f"Seen {{{{ n_history }}}} {{{{ candidate.title }}}}{costly}", catalogue([1] * 300))
    assert made.render(Query("1"), 0).text == "Seen 0 w0"
    assert 2 < len(drawn) < 40


def test_profile_then_fields_are_clipped_last() -> None:
    words = " ".join(f"word{i}" for i in range(60))
    items = pd.DataFrame({"item_id": ["x"], "title": ["A Fine Title"], "blurb": [words], "maker": ["Kite"]})
    data = Dataset.from_frames("long", pd.DataFrame({"user_id": ["1"], "item_id": ["x"]}), items)
    query = Query("1", (HistoryItem("x"),), {}, {"scene": words})
    spec = {"item_fields": ("blurb", "maker"), "max_field_chars": 5000, "max_tokens": 80}
    prompt = renderer(dataset=data, template="question", **spec).render(query, 0)
    # Clipping the context is enough; the candidate stays whole.
    assert prompt.clipped_fields == ("context.scene",)
    assert words in prompt.text
    assert 70 <= prompt.n_tokens <= 80
    assert prompt.dropped_history == 1
    # Here the context goes altogether, and the longest field of the candidate is cut; title and maker stay.
    prompt = renderer(dataset=data, template="question", **{**spec, "max_tokens": 30}).render(query, 0)
    assert prompt.clipped_fields == ("context.scene", "blurb")
    assert "A Fine Title (word0 word1" in prompt.text
    assert "…, Kite)?" in prompt.text
    assert prompt.n_tokens <= 30
    # In the end the title is cut, and says so.
    title_only = "{{ candidate.title }}"
    items["title"] = [words]
    data = Dataset.from_frames("long", pd.DataFrame({"user_id": ["1"], "item_id": ["x"]}), items)
    prompt = renderer(title_only, data, max_field_chars=5000, max_tokens=16).render(query, 0)
    assert prompt.clipped_fields == ("title",)
    assert prompt.text.startswith("word0 word1 ")
    assert prompt.n_tokens <= 16


def test_values_over_max_field_chars_are_clipped_and_named() -> None:
    prompt = renderer("{{ candidate.title }}: {{ candidate.blurb }}", max_field_chars=10).render(Query("u1"), 0)
    assert prompt.text == "Lantern B…: A keeper…"
    assert prompt.clipped_fields == ("blurb", "title")


def test_a_template_longer_than_the_budget_is_refused() -> None:
    source = "word " * 30 + "{{ candidate.title }}"
    with pytest.raises(TemplateError, match=r"takes 3\d tokens by itself, but the budget is 16"):
        renderer(source, max_tokens=16).render(query_of(DATA, "u1"), 0)


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_many_are_the_same_as_one_by_one() -> None:
    queries = [Query("u1", long_history(n), DATA.profile("u1"), {}) for n in (0, 3, 12, 30)]
    queries.append(replace(queries[2], hidden_fields=frozenset({"category"})))
    pairs = [(query, item) for query in queries for item in range(DATA.n_items)]
    for template in STARTERS:
        spec = {"template": template, "max_tokens": 48, "profile_fields": ("age",)}
        together = renderer(**spec).render_many(pairs)
        assert together == [renderer(**spec).render(query, item) for query, item in pairs]
        shared = renderer(**spec)
        assert together == [shared.render(query, item) for query, item in reversed(pairs)][::-1]
    assert renderer().render_many([]) == []


# ---- hostile values --------------------------------------------------------------------------------------------------


class MarkedCounter(WhitespaceCounter):
    special_tokens = ("[SEP]", "<|im_end|>")


def test_values_are_shown_as_text() -> None:
    title = "{{ 7 * 7 }} {% for %} \ue000\ue001 <script> [SEP] \x00x\u202e\ty\n\nz \ud800"
    items = pd.DataFrame({"item_id": ["x"], "title": ["plain"]})
    data = Dataset.from_frames("odd", pd.DataFrame({"user_id": ["1"], "item_id": ["x"]}), items)
    query = Query("1", (HistoryItem(title),), {}, {"scene": title, "{{ key }}": "v"})
    prompt = PromptRenderer(PromptSpec(template="text"), data, MarkedCounter()).render(query, 0)
    shown = "{{ 7 * 7 }} {% for %} \ue000\ue001 <script> [ SEP] x\u202e y z ?"
    assert pieces(prompt)[0] == ("history", "0", shown)
    assert ("context", "scene", shown) in pieces(prompt)
    assert "49" not in prompt.text


ODD = st.text(alphabet="ab {}%#\ue000\ue001\u202e\n\t雨夜é'\"\\|<>&.,;", max_size=30)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    template=st.sampled_from(list(STARTERS)),
    titles=st.lists(ODD, min_size=1, max_size=6),
    history=st.lists(st.tuples(st.integers(0, 7), st.none() | st.floats(1, 5, width=16)), max_size=12),
    age=ODD,
    scene=ODD,
    budget=st.integers(40, 120),
    hidden=st.sets(st.sampled_from(["title", "category"])),
)
def test_spans_and_budget_hold_for_anything(
    template: str,
    titles: Sequence[str],
    history: Sequence[tuple[int, float | None]],
    age: str,
    scene: str,
    budget: int,
    hidden: set[str],
) -> None:
    ids = [f"i{n}" for n in range(len(titles))]
    items = pd.DataFrame({"item_id": ids, "title": titles, "category": titles[::-1]})
    users = pd.DataFrame({"user_id": ["u"], "age": [age]})
    data = Dataset.from_frames(
        "any", pd.DataFrame({"user_id": ["u"], "item_id": ["i0"], "rating": [3.0]}), items, users
    )
    past = tuple(HistoryItem(f"i{n}", rating, 0.0) for n, rating in history)
    query = Query("u", past, {"age": age}, {"scene": scene}, frozenset(hidden))
    spec = PromptSpec(template=template, max_tokens=budget, profile_fields=("age",), max_history=10, show_time=True)
    prompt = PromptRenderer(spec, data, COUNTER).render(query, 0)

    assert prompt.n_tokens == COUNTER.count([prompt.text])[0] <= budget
    assert prompt.text == prompt.text.strip()
    end = 0
    offered = range(max(0, len(past) - 10), len(past))
    for span in prompt.spans:
        assert end <= span.start < span.end <= len(prompt.text)
        end = span.end
        piece = prompt.text[span.start : span.end]
        if span.kind == "history":
            assert int(span.ref) in offered[prompt.dropped_history :]
        elif span.kind == "candidate":
            if span.ref in hidden:
                assert piece == "unknown" or span.ref in prompt.clipped_fields
            elif span.ref == "title" and "title" not in prompt.clipped_fields:
                assert piece == (" ".join(titles[0].split()) or "i0")
        elif not prompt.clipped_fields:
            assert piece == " ".join((age if span.kind == "profile" else scene).split())
    assert any(span.kind == "candidate" and span.ref == "title" for span in prompt.spans)
