"""Numbers of every spelling: one reading for a column, the same in blocks of any size; what is open is asked."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from data.value_cases import in_blocks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrec_core.data._values import (
    ValueOptions,
    decide_numbers,
    parse_numbers,
    refuse_unanswered,
    settle_numbers,
)
from llmrec_core.errors import DataError, InputError

BAD = object()


def read(cells: list[str], options: ValueOptions | None = None, *, money: bool = False) -> list[object]:
    """Value of each cell; None for a blank one, BAD for a refused one."""
    values, bad = parse_numbers(pa.array(cells, pa.string()), "c", options or ValueOptions(), money=money)
    assert not (bad & ~np.isnan(values)).any()
    return [BAD if b else None if math.isnan(v) else v for v, b in zip(values.tolist(), bad.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["5", "+5", "-5", " 5 ", "5.", ".5", "1e3", "2E-1", "007"], [5, 5, -5, 5, 5, 0.5, 1000, 0.2, 7]),
        (["3,5", "4", "0,5", "-1,25"], [3.5, 4, 0.5, -1.25]),
        (["3,5", "4.5", "5"], [BAD, 4.5, 5]),
        (["1.234,5", "2,5", "3.000"], [1234.5, 2.5, 3000]),
        (["1,234.5", "2.5", "3,000"], [1234.5, 2.5, 3000]),
        (["1 234,5", "2,5", "1\u00a0000", "1\u202f000"], [1234.5, 2.5, 1000, 1000]),
        (["1'234.5", "12’345"], [1234.5, 12345]),
        (["1,234,567", "8"], [1234567, 8]),
        (["1.234.567", "8"], [1234567, 8]),
        (["12,34,567", "1,00,000.5"], [1234567, 100000.5]),
        (["1.234", "2.5"], [1.234, 2.5]),
        (["５", "４．５", "－３", "−2"], [5, 4.5, -3, -2]),
        (["٤٫٥", "٣", "۵"], [4.5, 3, 5]),
        (["5.0 out of 5", "3.5 out of 5", "4"], [5, 3.5, 4]),
        (["4/5", "3/5", "7/10", "6/5"], [4, 3, BAD, BAD]),
        (["4 stars", "1 star", "2 Sterne", "3 étoiles"], [4, 1, 2, 3]),
        (["★★★★☆", "★★", "★½", "☆☆☆☆☆", "⭐⭐⭐"], [4, 2, 1.5, 0, 3]),
        (["☆☆☆☆☆", "☆☆☆"], [BAD, BAD]),
        (["80%", "7 %", "12.5%"], [80, 7, 12.5]),
        (["80%", "70%", "4"], [80, 70, BAD]),
        (["4", "5", "80%"], [4, 5, BAD]),
        (["8.5分", "9分", "10 分"], [8.5, 9, 10]),
        (["like", "dislike", "Like", "1", "2"], [1, 0, 1, 1, BAD]),
        (["👍", "👎"], [1, 0]),
        (["true", "false", "TRUE"], [1, 0, 1]),
        (["4", "5", "3", "yes"], [4, 5, 3, BAD]),
        (["4½", "½", "3 ½"], [4.5, 0.5, 3.5]),
        (["5²", "①", "5", "Ⅳ"], [BAD, BAD, 5, BAD]),
        (["inf", "-inf", "1e999", "0x1F", "1_000", "--5", "5 5", "four", "1.2.3", "1,2,3", "5e"], [BAD] * 11),
        (["", "NA", "n/a", "null", "None", "-", "无", "nan", "\\N", " ", "5"], [None] * 10 + [5]),
        (["5" * 200_000, " " * 2000, "5"], [BAD, BAD, 5]),
        ([], []),
        (["", ""], [None, None]),
    ],
)
def test_numbers_of_every_spelling(cells: list[str], expected: list[object]) -> None:
    assert read(cells) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["$1,234.50", "$3", "USD 5.00", "7"], [1234.5, 3, 5, 7]),
        (["12,50 €", "1.234,00 €", "£3,00"], [12.5, 1234, BAD]),
        (["¥100", "￥200"], [100, 200]),
        (["19.90 zł", "5 zł"], [19.9, 5]),
    ],
)
def test_prices_name_a_currency_that_ratings_may_not(cells: list[str], expected: list[object]) -> None:
    assert read(cells, money=True) == expected
    named = [any(not (c.isdigit() or c in ".,' ") for c in cell) for cell in cells]
    assert [r is BAD for r, n in zip(read(cells), named, strict=True) if n] == [True] * sum(named)


def test_a_comma_before_three_digits_is_asked_about() -> None:
    text = pa.array(["1,234", "2,500"])
    found, _, bad = settle_numbers(text, "plays")
    assert [question.id for question in found.questions] == ["decimal"]
    assert not bad.any()
    with pytest.raises(DataError, match=r"'1,234'.*--map decimal=comma or --map decimal=point"):
        refuse_unanswered(found.questions, "file")
    assert read(["1,234", "2,500"], ValueOptions(decimal="comma")) == [1.234, 2.5]
    assert read(["1,234", "2,500"], ValueOptions(decimal="point")) == [1234, 2500]
    assert read(["1.234", "2,500"], ValueOptions(decimal="comma")) == [1234, 2.5]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["4/5", "3/5", "7/10"], "ratings out of 5"),
        (["4", "5", "80%"], "percentage"),
        (["80%", "70%", "4"], "no percentage"),
        (["3.5", "4.5", "1,5"], "decimal mark of this column is a point"),
        (["four", "1"], "'four' is not a number"),
    ],
)
def test_refusals_say_why(cells: list[str], words: str) -> None:
    found, _, bad = settle_numbers(pa.array(cells), "c")
    (position,) = np.flatnonzero(bad)
    assert words in found.reason(cells[position])


def test_notes_say_what_could_be_otherwise() -> None:
    def notes(cells: list[str]) -> str:
        return " ".join(settle_numbers(pa.array(cells), "c")[0].notes)

    assert "comma is the decimal mark" in notes(["3,5"])
    assert "out of 5" in notes(["4/5"])
    assert "percentages" in notes(["80%"])
    assert "'NA', '\\\\N'" in notes(["NA", "", "\\N", "4"])
    assert notes(["4", "5", ""]) == ""


def test_options_are_checked() -> None:
    options = ValueOptions.of({"decimal": "comma", "scale": "0,5..5", "kind": "x", "timezone": "Europe/Berlin"})
    assert (options.decimal, options.scale, options.timezone) == ("comma", (0.5, 5.0), "Europe/Berlin")
    for key, value, words in [
        ("decimal", "dot", "auto, point, comma"),
        ("scale", "5", "LOW..HIGH"),
        ("scale", "5..1", "LOW..HIGH"),
        ("scale", "nan..5", "LOW..HIGH"),
        ("timezone", "../../etc/passwd", "time zone is unknown"),
        ("timezone", "Mars/Olympus", "time zone is unknown"),
        ("time_unit", "weeks", "excel"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            ValueOptions.of({key: value})
        assert key in str(caught.value)


# ------------------------------------------------------------------------------------------------ blocks

CELLS = st.sampled_from(
    [
        *("5", "4", "3", "4.5", "3,5", "1.234", "1,234", "1,234.5", "1.234,5", "1,234,567", "4/5", "7/10", "80%"),
        *("★★★", "yes", "no", "NA", "", "four", "５", "1 234", "8分", "1e3", "-2", "٤٫٥"),
    ]
)


@settings(max_examples=80, deadline=None)
@given(st.lists(CELLS, max_size=10), st.lists(CELLS, max_size=10), st.lists(st.integers(0, 20), max_size=4))
@example(first=[], rest=["4/5", "1,234"], cuts=[1])
def test_blocks_of_any_size_give_the_same_numbers(first: list[str], rest: list[str], cuts: list[int]) -> None:
    """The first cells are what the column is judged by; whatever follows, the cuts do not matter."""
    cells = first + rest
    start = decide_numbers(pa.array(first, pa.string()), "c")
    whole, expected = in_blocks(start, cells, [])
    cut, found = in_blocks(start, cells, cuts)
    assert found == expected
    assert cut == whole


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 100), min_size=1, max_size=20), st.booleans())
def test_what_a_locale_writes_is_read_back(numbers: list[float], german: bool) -> None:
    cells = [f"{number:,.2f}" for number in numbers]
    if german:
        cells = [cell.translate(str.maketrans(",.", ".,")) for cell in cells]
    assert read(cells) == numbers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e20, 1e20), min_size=1, max_size=20))
def test_what_python_writes_is_read_back(numbers: list[float]) -> None:
    assert read([repr(number) for number in numbers]) == numbers


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_text_is_a_finite_number_blank_or_refused(cells: list[str]) -> None:
    for value in read(cells) + read(cells, money=True):
        assert value is BAD or value is None or math.isfinite(value)  # type: ignore[arg-type]
