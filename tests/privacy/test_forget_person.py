"""Which words of a text are a person: exact in structured places, careful in running text."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_core.forgetting.person import GONE, Person


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("user 1 has no row at step 1 of 1", f"user {GONE} has no row at step 1 of 1"),
        ("there is no user '1'.", f"there is no user '{GONE}'."),
        ('{"user_id": "1", "rank": 1}', f'{{"user_id": "{GONE}", "rank": 1}}'),
        ("user_id=1, k=1", f"user_id={GONE}, k=1"),
        ("--user 1 --top 1", f"--user {GONE} --top 1"),
        ("user 11 and user '12' and 1.5", "user 11 and user '12' and 1.5"),
        ("users 1 to 5", "users 1 to 5"),
        ("epoch 1", "epoch 1"),
    ],
)
def test_a_short_id_goes_only_where_it_is_a_user(text, left):
    assert Person(("1",)).redact(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Reader anna_17 liked it", f"Reader {GONE} liked it"),
        ("(anna_17)", f"({GONE})"),
        ("joanna_17 and anna_170 stay", "joanna_17 and anna_170 stay"),
    ],
)
def test_a_distinctive_id_goes_as_a_word_anywhere(text, left):
    assert Person(("anna_17",)).redact(text) == left


def test_ids_are_found_as_the_code_writes_them():
    person = Person(("o'neil\n7",))
    assert person.redact(f"there is no user {person.ids[0]!r}.") == f'there is no user "{GONE}".'
    long = Person(("x9" * 100,))
    assert GONE in long.redact(f"there is no user {long.ids[0][:80]!r}.")
    assert Person(("zoë_1",)).redact('{"user": "zo\\u00eb_1"}') == f'{{"user": "{GONE}"}}'


def test_json_loses_entries_about_the_person_and_keeps_the_rest():
    person = Person(("u7@x.org", "7"))
    document = {
        "examples": [{"user_id": "7", "score": 7}, {"user_id": "8", "score": 7}],
        "by_user": {"u7@x.org": 0.5, "8": 0.5},
        "ks": {"7": 0.1},
        "user": "7",
        "n": 7,
        "note": "for user 7",
    }
    assert person.scrub(document) == {
        "examples": [{"user_id": "8", "score": 7}],
        "by_user": {"8": 0.5},
        "ks": {"7": 0.1},
        "user": GONE,
        "n": 7,
        "note": f"for user {GONE}",
    }


def test_columns_of_text_lose_a_distinctive_id_and_only_that():
    column = pa.array(["from anna_17", "7", None, "other"], pa.large_string())
    assert Person(("anna_17", "7")).redact_column(column).to_pylist() == [f"from {GONE}", "7", None, "other"]
    assert Person(("7",)).redact_column(column) is column
    assert Person(("anna_17",)).matches(pa.array(["anna_17", "anna_1", None])).to_pylist() == [True, False, False]


@given(st.text(max_size=40), st.sampled_from(["1", "42", "anna_17", "a.b@c.de", "user", "'", "\\", "[x](y)"]))
def test_nothing_is_changed_where_the_id_does_not_stand_and_nothing_breaks(text, one):
    person = Person((one,))
    cleaned = person.redact(text)
    if one not in text:
        assert cleaned == text
    assert person.redact(cleaned.replace(GONE, "")) is not None
