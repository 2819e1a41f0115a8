"""Prompts with lettered lists of candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prompts.prompt_data import query_of, small_dataset

from llmrec_core.contracts import Query
from llmrec_core.errors import InputError
from llmrec_core.prompts import PromptRenderer, WhitespaceCounter
from llmrec_core.specs import PromptSpec

DATA = small_dataset()
QUERY = query_of(DATA, "u1")
ITEMS = [4, 0, 1, 2]


def renderer(**spec: object) -> PromptRenderer:
    return PromptRenderer(PromptSpec(template="choice", **spec), DATA, WhitespaceCounter())  # type: ignore[arg-type]


def titles(prompt) -> list[str]:
    return [
        prompt.text[s.start : s.end] for s in prompt.spans if s.kind == "candidate" and s.ref == "title"
    ]  # fmt: skip


def test_candidates_are_lettered_in_their_order() -> None:
    (prompt,) = renderer().render_lists([(QUERY, ITEMS, None)])
    names = [DATA.item_text(item, "title") for item in ITEMS]
    assert titles(prompt) == names
    lines = [line.split(" (")[0] for line in prompt.text.splitlines() if line[1:2] == "."]
    assert lines == [f"{letter}. {name}" for letter, name in zip("ABCD", names, strict=True)]
    assert prompt.text.endswith("Answer:")


def test_who_is_asked_about_changes_the_spans_and_not_the_text() -> None:
    everyone, third = renderer().render_lists([(QUERY, ITEMS, None), (QUERY, ITEMS, 2)])
    assert everyone.text == third.text
    assert titles(third) == [DATA.item_text(ITEMS[2], "title")]
    assert {s for s in third.spans if s.kind != "candidate"} == {s for s in everyone.spans if s.kind != "candidate"}


def test_only_the_asked_item_hides_its_fields() -> None:
    hidden = replace(QUERY, hidden_fields=frozenset({"title"}))
    one, everyone = renderer().render_lists([(hidden, ITEMS, 1), (hidden, ITEMS, None)])
    assert one.text.count("unknown") == 1
    assert titles(one) == ["unknown"]
    assert "\nB. unknown (" in one.text
    assert titles(everyone) == ["unknown"] * 4


@pytest.mark.parametrize("asked", [None, 0])
def test_a_tight_budget_drops_history_and_then_clips_all_alike(asked: int | None) -> None:
    (roomy,) = renderer(max_tokens=200).render_lists([(QUERY, ITEMS, asked)])
    tight = renderer(max_tokens=roomy.n_tokens - 1).render_lists([(QUERY, ITEMS, asked)])[0]
    assert tight.dropped_history == 1
    assert tight.clipped_fields == ()
    bare = renderer(max_tokens=200, max_history=0).render_lists([(QUERY, ITEMS, None)])[0]
    squeezed = renderer(max_tokens=bare.n_tokens - 1).render_lists([(QUERY, ITEMS, asked)])[0]
    assert squeezed.n_tokens < bare.n_tokens
    assert squeezed.clipped_fields == ("category",)
    assert squeezed.text == renderer(max_tokens=bare.n_tokens - 1).render_lists([(QUERY, ITEMS, 3)])[0].text


def test_a_list_of_one_is_the_plain_prompt() -> None:
    assert renderer().render_lists([(QUERY, [3], 0)])[0] == renderer().render(QUERY, 3)


def test_what_cannot_be_lettered_is_refused() -> None:
    for items in ([], [0] * 27, [99]):
        with pytest.raises(InputError):
            renderer().render_lists([(Query("u1"), items, None)])
    assert renderer().reads_lists
    assert not PromptRenderer(PromptSpec(), DATA, WhitespaceCounter()).reads_lists
