"""A query's head drawn once and a candidate's tail once: the prompts are those of drawing each whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts.prompt_data import query_of, small_dataset
from prompts.test_tokens import byte_pairs, word_pieces

from llmrec_core.contracts import HistoryItem, Query, RenderedPrompt
from llmrec_core.errors import TemplateError
from llmrec_core.prompts import STARTERS, Limits, PromptRenderer, Sandbox, TokenCounter, WhitespaceCounter, render
from llmrec_core.prompts.templates import VARIABLES
from llmrec_core.specs import PromptSpec

DATA = small_dataset()
COUNTERS = {"words": WhitespaceCounter(), "pieces": TokenCounter(word_pieces()), "bytes": TokenCounter(byte_pairs())}

#: Templates that can be cut, and what is odd about them.
CUT = {
    "a head of words alone": "Would you like {{ candidate.title }}?",
    "the seam inside a word": "Seen {% for h in history %}{{ h.title }}, {% endfor %}new:{{ candidate.title }}.",
    "two blanks at the seam": "Seen {{ history|map(attribute='title')|join(', ') }}  {{ candidate.title }} it",
    "a new line at the seam": "{% for h in history %}{{ h.title }}\n\n{% endfor %}\n{{ candidate.title }}",
    "history on both sides": "{% for h in history %}{{ h.title }} {% endfor %}: {{ candidate.title }} {{ n_history }}",
    "a head that may be blank": "{% for h in history %}{{ h.title }} {% endfor %} {{ candidate.title }}",
    "a tail that may be blank": "Seen {{ n_history }} {% if candidate.maker %}{{ candidate.maker }}{% endif %} ",
    "nothing of the candidate": "Seen {{ n_history }} \n{% if candidate.maker == 'none' %}x{% endif %} \n",
    "loops of one name": (
        "{% for n in history %}{{ n.title }} {% endfor %}- {% for n, v in candidate.named %}{{ v }}{% endfor %}"
    ),
    "set in a loop alone": (
        "{% for h in history %}{% set t = h.title %}{{ t }} {% endfor %}|{% set u = candidate.title %} {{ u }}"
    ),
    "the candidate in a loop": "Seen: {% for h in history %}{{ h.title }} before {{ candidate.title }}; {% endfor %}",
    "missing for some": "Seen {{ n_history }} {{ context.scene }} {{ candidate.title }}",
    "missing in the tail": "Seen {{ n_history }} {{ candidate.title }} {{ context.scene }}",
}
#: Templates that cannot: the candidate comes first, or what is set in one half is read in the other.
WHOLE = {
    "the candidate first": "{{ candidate.title }} after {% for h in history %}{{ h.title }} {% endfor %}",
    "the candidate decides": "{% if candidate.category %}{{ n_history }}{% else %}x{% endif %} {{ candidate.title }}",
    "no candidate": "Seen {{ n_history }}",
    "a value set before": "{% set sep = ' / ' %}{{ n_history }}{{ sep }}{{ candidate.title }}{{ sep }}",
    "a value counted": (
        "{% set ns = namespace(n=0) %}{% for h in history %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ candidate.title }} {{ ns.n }}"
    ),
    "a value set under a condition": (
        "{% set n = 0 %}{% if history %}{% set n = 1 %}{% else %}{% set n = 2 %}{% endif %}{{ candidate.title }}{{ n }}"
    ),
    "a value set behind": "{{ n_history }} {% set n_history = 7 %}{{ candidate.title }} {{ n_history }}",
}  # fmt: skip


def renderer(source: str | None, counter: str = "words", *, whole: bool = False, **spec: object) -> PromptRenderer:
    spec = {"profile_fields": ("age", "job"), **spec}
    made = PromptRenderer(PromptSpec(source=source, **spec), DATA, COUNTERS[counter])  # type: ignore[arg-type]
    if whole:
        made._halves = None
    return made


def outcome(made: PromptRenderer, pairs: Sequence[tuple[Query, int]]) -> list[RenderedPrompt] | str:
    try:
        return made.render_many(pairs)
    except TemplateError as error:
        return str(error)


@pytest.mark.parametrize(("sources", "cut"), [(CUT, True), (WHOLE, False)], ids=["cut", "whole"])
def test_which_templates_are_cut(sources: dict[str, str], cut: bool) -> None:
    for name, source in sources.items():
        assert (renderer(source)._halves is not None) == cut, name
    assert all(renderer(starter.source)._halves is not None for starter in STARTERS.values())


EVENTS = st.tuples(st.sampled_from([*"abcdefgh", "gone", "雨 夜"]), st.none() | st.sampled_from([1.0, 3.0, 4.5]))
WORDS = st.text(alphabet="ab ,.é\u0301雨夜\t\n[]'", max_size=12)
QUERIES = st.builds(
    lambda history, age, scene, hidden: Query(
        "u", tuple(HistoryItem(item, rating, 0.0) for item, rating in history), {"age": age, "job": age},
        {} if scene is None else {"scene": scene}, frozenset(hidden),
    ),
    st.lists(EVENTS, max_size=14), WORDS, st.none() | WORDS, st.sets(st.sampled_from(["title", "category"])),
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    source=st.sampled_from([*(s.source for s in STARTERS.values()), *CUT.values(), *WHOLE.values()]),
    counter=st.sampled_from(sorted(COUNTERS)),
    queries=st.lists(QUERIES, min_size=1, max_size=3),
    items=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    budget=st.integers(16, 90),
)
def test_prompts_are_those_of_whole_drawing(
    source: str, counter: str, queries: list[Query], items: list[int], budget: int
) -> None:
    """Texts, spans, counts, what is left out and clipped, and every complaint."""
    pairs = [(query, item) for query in queries for item in items]
    spec = {"max_tokens": budget, "max_history": 9, "show_time": True}
    halved, whole = renderer(source, counter, **spec), renderer(source, counter, whole=True, **spec)
    expected = outcome(whole, pairs)
    assert outcome(halved, pairs) == expected
    # What was kept from the first time is as good.
    assert outcome(halved, pairs[::-1]) == (
        expected[::-1] if isinstance(expected, list) else outcome(whole, pairs[::-1])
    )


def test_lists_of_candidates_too() -> None:
    query = query_of(DATA, "u1")
    lists = [(query, [3, 1, 4], None), (query, [4, 3, 1], 0), (query, [5], None)]
    for source in (STARTERS["choice"].source, CUT["a head of words alone"]):
        assert renderer(source).render_lists(lists) == renderer(source, whole=True).render_lists(lists)


def test_each_half_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[frozenset[str]] = []
    original = render.Program.drawn
    monkeypatch.setattr(
        render.Program, "drawn", lambda self, given: (drawn.append(self.reads), original(self, given))[1]
    )
    made = renderer(None)
    drawn.clear()
    queries = [query_of(DATA, user) for user in ("u1", "u2")]
    made.render_many([(query, item) for query in queries for item in range(8)])
    assert sorted("candidate" in reads for reads in drawn) == [False] * 2 + [True] * 8
    monkeypatch.setattr(render, "_MAX_TAILS", 3)
    made = renderer(None)
    made.render_many([(query_of(DATA, "u1"), item) for item in range(8)])
    assert 1 <= len(made._tails) <= 3


def test_halves_together_stay_inside_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for i in range(40) %}.{% endfor %}"
    source = f"{loop} {{{{ candidate.title }}}} {loop}"
    sandbox = Sandbox(VARIABLES)
    whole, halves = sandbox.compile(source), sandbox.compile_halves(source, ("candidate",))
    assert halves is not None
    given = {"candidate": {"title": "x"}}
    spent = [program.drawn(given)[1] for program in (whole, *halves)]
    assert spent[0] == spent[1] + spent[2] > spent[1] > 0
    for limits in (Limits(fuel=spent[0] - 1), Limits(max_text_chars=60)):
        monkeypatch.setattr(render, "prompt_sandbox", lambda limits=limits: Sandbox(VARIABLES, limits=limits))
        render._compiled.cache_clear()
        with pytest.raises(TemplateError, match=r"too much work|grew beyond 60"):
            renderer(source).render(Query("u"), 0)
    monkeypatch.undo()
    render._compiled.cache_clear()
