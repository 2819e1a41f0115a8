"""Safe text, choices in the address bar, coloured words, and forms made from specs."""

from __future__ import annotations

import re
from typing import get_args

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as some
from streamlit.testing.v1 import AppTest

from llmrec_core.presets import PRESETS, override_spec, preset_spec
from llmrec_core.specs import FAMILIES, PromptSpec, RecommenderSpec, SplitSpec, TrainingSpec
from llmrec_core.specs.titles import FAMILY_TITLES
from pages._studio.base import ago, duration, label, moment, plain, size
from pages._studio.import_report import by_reason
from pages._studio.privacy import places_in_words
from pages._studio.spec_form import form_fields, spec_fields
from pages._studio.uploads import safe_name
from pages._studio.words import legend_html, spans_html


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "[x](javascript:alert(1))", "![](http://e/x.png)", "$x$"]
)
def test_plain_leaves_no_working_markup(hostile):
    shown = plain(hostile)
    for mark in "<>[]()!$:":
        assert shown.count(mark) == shown.count(f"\\{mark}")


def test_marks_that_turn_text_around_are_dropped():
    assert plain("a\u202eb\u0000c") == "abc"
    assert label("a\u202e b\n\n c") == "a b c"


def test_long_text_is_cut():
    assert len(label("x" * 500, 80)) == 80


def test_numbers_for_people():
    assert duration(75) == "1 min 15 s"
    assert duration(None) == "–"
    assert duration(3660) == "1 h 1 min"
    assert size(999) == "999 B"
    assert size(90_868_376) == "90.9 MB"
    assert size(None) == "–"
    assert ago(None) == "some time ago"


def test_spans_are_tinted_and_escaped():
    html = spans_html("a <b> c", [{"start": 2, "end": 5, "kind": "candidate", "ref": '"x"'}])
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert 'title="candidate: &quot;x&quot;"' in html


@given(some.text(max_size=60), some.lists(some.tuples(some.integers(0, 70), some.integers(0, 70)), max_size=6))
def test_spans_keep_every_letter(text, cuts):
    import re
    from html import unescape

    spans = [{"start": a, "end": b, "kind": "history", "ref": "0"} for a, b in cuts]
    assert unescape(re.sub(r"<[^>]*>", "", spans_html(text, spans))) == text


def test_legend_knows_only_real_kinds():
    assert "candidate" in legend_html(["candidate", "nonsense"])
    assert "nonsense" not in legend_html(["nonsense"])


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_form_field_round_trips_through_the_spec(preset):
    spec = preset_spec(preset, "sample")
    fields = form_fields(spec)
    assert {f.path for f in fields} >= {"training.learning_rate", "split.protocol", "evaluation.ks", "device", "seed"}
    assert all(f.help for f in fields)
    values = {f.path: list(f.value) if f.kind == "list" and f.value is not None else f.value for f in fields}
    assert override_spec(spec, values) == spec


def test_bounds_of_fields_come_from_the_spec():
    fields = {f.path: f for f in form_fields(preset_spec("quick", "sample"))}
    assert (fields["prompt.max_tokens"].low, fields["prompt.max_tokens"].high) == (16, 4096)
    assert fields["training.precision"].choices == ("auto", "bf16", "fp32")
    assert fields["training.max_samples"].optional
    assert "dataset.name" not in fields


@pytest.mark.parametrize("part", [*get_args(get_args(RecommenderSpec)[0]), PromptSpec, TrainingSpec, SplitSpec])
def test_labels_of_every_family_are_words_for_people(part):
    # A field with two meanings, or a bare letter, says too little over a box.
    fields = spec_fields(part(), "")
    assert all(re.fullmatch(r"[A-Z][^_]{3,}", field.title) for field in fields), [field.title for field in fields]
    titles = {field.path.rpartition(".")[2]: field.title for field in fields}
    assert titles.get("n_text") in (None, "Text dimensions kept")
    assert titles.get("id_bound") in (None, "How far an id may move a vector")
    assert titles.get("l2") in (None, "Regularisation (L2)")


def test_every_family_has_a_name():
    assert set(FAMILY_TITLES) >= set(FAMILIES)


def test_upload_names_stay_in_their_folder():
    assert safe_name("../../etc/passwd", set()) == "passwd"
    assert safe_name("C:\\data\\ratings.csv", set()) == "ratings.csv"
    assert safe_name("ratings.csv", {"ratings.csv"}) == "ratings-2.csv"
    assert safe_name("\u0000", set()) == "_"
    assert safe_name("..", set()) == "file"


def _choice() -> None:
    from pages._studio.base import linked_choice

    linked_choice("Run", ["a", "b", "c"], param="run", key="k", kind="run")


def test_a_link_decides_once_and_the_choice_goes_back_into_the_link():
    app = AppTest.from_function(_choice)
    app.query_params["run"] = "b"
    app.run()
    assert app.selectbox(key="k").value == "b"
    app.selectbox(key="k").select("c").run()
    assert app.query_params["run"] in ("c", ["c"])
    app.query_params["run"] = "a"
    app.run()
    assert app.selectbox(key="k").value == "a"


def test_an_unknown_id_in_a_link_is_shown_as_text():
    app = AppTest.from_function(_choice)
    app.query_params["run"] = "<script>"
    app.run()
    assert not app.exception
    assert "\\<script\\>" in app.warning[0].value
    assert app.selectbox(key="k").value == "a"


def test_reasons_of_refused_rows_are_counted_and_left_whole_where_all_say_the_same():
    rejects = pd.DataFrame(
        {
            "file": ["a.csv"] * 4,
            "reason": [
                "3 cells instead of 4",
                "3 cells instead of 4",
                "rating 'x' is not a number",
                "rating 'y' is not a number",
            ],
        }
    )
    assert by_reason(rejects).to_dict("records") == [
        {"table": "a.csv", "reason": "3 cells instead of 4", "rows": 2},
        {"table": "a.csv", "reason": "rating … is not a number", "rows": 2},
    ]


def test_files_of_datasets_are_said_in_words():
    files = ["datasets/shop/v2/users.parquet", "datasets/shop/v2/items.parquet", "runs/abc/log.txt"]
    assert places_in_words(files) == "dataset shop, version 2; runs/abc/log.txt"


def test_a_moment_is_told_in_words_that_do_not_change():
    assert moment(1_700_000_000.0) == "2023-11-14 22:13 UTC"
    assert moment(None) == "some time ago"
