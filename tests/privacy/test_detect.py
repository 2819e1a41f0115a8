"""Personal data in text: found where it is, not found where it is not, masked on request, quick on hostile text."""

import itertools
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_core.data.privacy import KINDS, WHOLE_CELL, find_personal, mask_text
from llmrec_core.data.privacy.detect import find_spans
from llmrec_core.errors import InputError


def masked(text, *kinds):
    return mask_text(pa.array([text]), kinds or KINDS)[0].as_py()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("write to anna.b+x@mail.example.co.uk.", "write to [e-mail]."),
        ("ANNA@EXAMPLE.ORG,bob@example.org", "[e-mail],[e-mail]"),
        ("小明@例子.公司 wrote", "[e-mail] wrote"),
        ("call +49 30 1234567 now", "call [phone] now"),
        ("(212) 555-0187 or 212.555.0187", "[phone] or [phone]"),
        ("13812345678", "[phone]"),
        ("手机 138-1234-5678", "手机 [phone]"),
        ("+86 138 1234 5678", "[phone]"),
        ("010-62345678", "[phone]"),
        ("020 7946 0958", "[phone]"),
        ("phone: 5550187", "phone: [phone]"),
        ("card 4111 1111 1111 1111 ok", "card [card] ok"),
        ("378282246310005", "[card]"),
        ("from 192.168.1.20 today", "from [ip] today"),
        ("2001:db8::8a2e:370:7334", "[ip]"),
        ("11010519491231002X", "[id]"),
        ("SSN 123-45-6789", "SSN [id]"),
        ("thanks to Anna Kowalska and John F. Kennedy", "thanks to [name] and [name]"),
        ("My name is Xiomara.", "My name is [name]."),
        ("Dear Ngozi Adeyemi, hello", "Dear [name], hello"),
        ("Dr. Weber said", "Dr. [name] said"),
        ("王先生推荐", "[name]先生推荐"),
    ],
)
def test_personal_data_is_masked(text, left):
    assert masked(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "user@host",
        "a @ b",
        "@handle",
        "1600000000 and 1600000000000",
        "01/02/2003 10",
        "2003-01-02 12:30:45",
        "ISBN 978-3-16-148410-0",
        "EAN 4006381333931",
        "price 1,234,567.89",
        "$ 100-200-3000",
        "1 000 000 000",
        "4111111111111112",
        "110105194912310021",
        "version 1.2.3.4",
        "v10.0.0.1",
        "192.168.1.300",
        "std::string at 12:30:45",
        "rated 5/5, 10/10",
        "Toy Story (1995)",
        "The Red Chair by Ikea",
        "I liked it very much",
        "",
    ],
)
def test_what_only_looks_alike_stays(text):
    assert masked(text) == text


def test_a_wrong_check_digit_is_no_card_and_no_identity_number():
    for digit in "0123456789":
        card, resident = "411111111111111" + digit, "11010519491231002" + digit
        assert bool(find_spans(card, "card")) == (digit == "1")
        assert find_spans(resident, "id_number") == []
    assert find_spans("11010519491231002x", "id_number") == [(0, 18)]


def test_columns_are_reported_with_counts_shares_and_covered_examples():
    found = find_personal(
        {
            "comment": ["fine", "mail bob@example.org", "", None, "or 13812345678 or bob@example.org"],
            "n": ["1", "2", "3", "4", "5"],
            "number": pa.array([1, 2, 3, 4, 5]),
        }
    )
    assert [(one.column, one.kind, one.n_cells) for one in found] == [("comment", "email", 2), ("comment", "phone", 1)]
    assert found[0].share == pytest.approx(2 / 3)
    assert not found[0].whole_cells
    assert found[0].sentence == "comment: e-mail addresses in 2 cells (67 %)"
    assert "bob" not in str(found)
    assert found[0].examples[0].startswith("b••@e")


def test_a_column_of_names_is_told_by_its_header_or_by_its_cells():
    strange = ["Xq Zed", "Wub Foo", "Iii Bar"]
    assert [f.kind for f in find_personal({"last_name": strange})] == ["name"]
    assert [f.whole_cells for f in find_personal({"reviewerName": ["kiki", "J. Smith"]})] == [True]
    assert [f.kind for f in find_personal({"name": strange}, about="users")] == ["name"]
    assert [f.kind for f in find_personal({"x": ["王小明", "李雷", "张伟"]}, about="users")] == ["name"]
    assert [f.kind for f in find_personal({"who": ["Anna Lee", "Peter Q. Xu", "Zed"]}, about="users")] == ["name"]
    # A name is a person only where rows are persons.
    assert find_personal({"name": ["Red Chair", "Blue Table", "Lamp"]}, about="items") == []
    assert find_personal({"city": ["New York", "Berlin", "San Jose"]}, about="users") == []
    assert find_personal({"job": ["writer", "technician", "other"]}, about="users") == []


def test_titles_of_films_are_not_taken_for_names():
    """Invented in the manner of catalogues, with a few that are named after persons, as real ones have."""
    rng = np.random.default_rng(5)
    first = ["The Last", "Return of the", "Broken", "Silent", "A Summer in", "Escape from", "Red", "Midnight", "Lost"]
    second = ["Dragon", "Paris", "Highway", "Mountain", "Kingdom", "Station", "Waltz", "Harbour", "Machine", "Winter"]
    titles = [f"{rng.choice(first)} {rng.choice(second)} ({1930 + int(rng.integers(90))})" for _ in range(950)]
    titles += [f"Mr. {rng.choice(second)}'s Secret" for _ in range(20)] + ["Anna Karlova", "Doctor Maria Stern"] * 10
    assert find_personal({"title": titles}, about="items") == []
    hits = sum(bool(find_spans(title, "name")) for title in titles)
    assert hits <= 0.05 * len(titles)
    # Nothing else is seen in them either.
    assert mask_text(pa.array(titles), ["email", "phone", "ip", "card", "id_number"]).to_pylist() == titles


def test_only_the_kinds_asked_for_are_masked_and_null_stays():
    column = pa.array(["bob@example.org 13812345678", None, "", "plain"])
    assert mask_text(column, ["email"]).to_pylist() == ["[e-mail] 13812345678", None, "", "plain"]
    assert mask_text(column, []).to_pylist() == column.to_pylist()
    assert mask_text(column, [WHOLE_CELL]).to_pylist() == ["[hidden]", None, "", "[hidden]"]
    assert mask_text(pa.chunked_array([column, column])).to_pylist()[4] == "[e-mail] [phone]"
    assert mask_text(pa.array([], pa.string())).to_pylist() == []
    with pytest.raises(InputError, match="cannot be masked"):
        mask_text(column, ["shoe size"])


@given(st.text(max_size=60))
def test_masking_twice_is_masking_once_and_spans_are_in_order(text):
    once = masked(text)
    assert masked(once) == once
    for kind in KINDS:
        spans = find_spans(text, kind)
        assert all(0 <= start < end <= len(text) for start, end in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


HOSTILE = {
    "one word": "a",
    "digits": "1 ",
    "dots": "1.",
    "at signs": "a@",
    "domains": "a@b.",
    "long domains": "a@" + "b" * 63,
    "labels": "b." * 3 + "@",
    "colons": ":",
    "hex": "1:",
    "plus": "+1",
    "brackets": "(",
    "names": "Anna ",
    "pairs": "Anna Anna. ",
    "titles": "Dr. ",
    "cards": "4111 ",
    "han": "王先",
    "spaces": " ",
    "letters": "aA ",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_time_grows_with_the_length_however_hostile_the_text(unit):
    """Eight times the text may take some twenty times as long, on a busy machine; quadratic would be sixty-four."""

    def seconds(n_chars):
        text = pa.array([unit * (n_chars // len(unit))])
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            mask_text(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(160_000) <= 20 * max(seconds(20_000), 0.002)
