"""Times of every shape: one reading for a column, the same in blocks of any size; what is open is asked."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pyarrow as pa
import pytest
from data.value_cases import in_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data._values import (
    ValueOptions,
    carry_times,
    decide_times,
    parse_times,
    refuse_unanswered,
    settle_times,
)
from llmrec_core.errors import DataError

BAD = object()


def utc(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


def read(cells: list[str], column: str = "when", **options: str) -> list[object]:
    """Seconds of each cell; None for a blank one, BAD for a refused one."""
    _, seconds, bad = settle_times(pa.array(cells, pa.string()), column, ValueOptions.of(options))
    return [BAD if b else None if math.isnan(v) else v for v, b in zip(seconds.tolist(), bad.tolist(), strict=True)]


MARCH_5 = utc("2024-03-05")
AFTERNOON = utc("2024-03-05T15:04:00")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2024-03-05", MARCH_5),
        ("2024-3-5", MARCH_5),
        ("2024/03/05", MARCH_5),
        ("2024.03.05", MARCH_5),
        ("20240305", MARCH_5),
        ("2024-03-05T15:04", AFTERNOON),
        ("2024-03-05 15:04:00", AFTERNOON),
        ("2024-03-05T15:04:00.250", AFTERNOON + 0.25),
        ("2024-03-05T15:04:00.123456789Z", AFTERNOON + 0.123456),
        ("2024-03-05T15:04:00Z", AFTERNOON),
        ("2024-03-05T17:04:00+02:00", AFTERNOON),
        ("2024-03-05T17:04:00+0200", AFTERNOON),
        ("2024-03-05T11:34:00-03:30", AFTERNOON),
        ("2024-03-05 15:04:00 UTC", AFTERNOON),
        ("2024-03-05 16:04 CET", AFTERNOON),
        ("2024-03-05 10:04 EST", AFTERNOON),
        ("2024-03-05 16:04 Europe/Berlin", AFTERNOON),
        ("2024-03-05T16:04:00+01:00[Europe/Berlin]", AFTERNOON),
        ("20240305T150400", AFTERNOON),
        ("20240305T150400Z", AFTERNOON),
        ("20240305150400", AFTERNOON),
        ("05.03.2024", MARCH_5),
        ("05.03.2024 15:04", AFTERNOON),
        ("5-Mar-2024", MARCH_5),
        ("5 March 2024", MARCH_5),
        ("5. März 2024", MARCH_5),
        ("le 5 mars 2024", MARCH_5),
        ("5 de marzo de 2024", MARCH_5),
        ("March 5th, 2024", MARCH_5),
        ("Mar 5, 2024, 3:04 p.m.", AFTERNOON),
        ("March 5, 2024 at 3:04 PM", AFTERNOON),
        ("2024 Mar 5", MARCH_5),
        ("03 5, 2024", MARCH_5),
        ("Tue, 05 Mar 2024 16:04:00 +0100", AFTERNOON),
        ("Tue, 5 Mar 2024 15:04:00 GMT", AFTERNOON),
        ("Tue Mar  5 15:04:00 2024", AFTERNOON),
        ("Tue Mar 05 15:04:00 +0000 2024", AFTERNOON),
        ("Tue Mar 05 2024 16:04:00 GMT+0100 (Central European Standard Time)", AFTERNOON),
        ("2024年3月5日", MARCH_5),
        ("2024年3月5日 下午3:04", AFTERNOON),
        ("2024年03月05日 15时04分00秒", AFTERNOON),
        ("2024年3月5日 星期二 15:04", AFTERNOON),
        ("２０２４年３月５日 １５：０４", AFTERNOON),
        ("令和6年3月5日", MARCH_5),
        ("2024년 3월 5일 오후 3시 4분", AFTERNOON),
        ("2024-W10-2", MARCH_5),
        ("2024-065", MARCH_5),
        ("٢٠٢٤-٠٣-٠٥", MARCH_5),
        ("2024-03-05 24:00:00", MARCH_5 + 86400),
        ("2024-03-05 12:30 am", MARCH_5 + 1800),
        ("2024-03-05 12:30 PM", MARCH_5 + 12.5 * 3600),
        ("2024年3月5日 凌晨12:30", MARCH_5 + 1800),
        ("2024年3月5日 中午12点", MARCH_5 + 12 * 3600),
        ("2024年3月5日 晚上8点30分", MARCH_5 + 20.5 * 3600),
        ("2024-02-30", BAD),
        ("2023-02-29", BAD),
        ("2024-13-01", BAD),
        ("2024-03-05 25:00", BAD),
        ("2024-03-05 10:60", BAD),
        ("2024-03-05 13:00 am", BAD),
        ("2024-03-05 10:00 CST", BAD),
        ("2024-03-05 10:00 Mars/Olympus", BAD),
        ("2024-03-05 10:00 +19:00", BAD),
        ("2024-03/05", BAD),
        ("2024-W54-1", BAD),
        ("2023-366", BAD),
        ("1776-07-04", BAD),
        ("2999-01-01", BAD),
        ("soon", BAD),
        ("5 Smarch 2024", BAD),
        ("2024-03-05 and more", BAD),
        ("", None),
        ("n/a", None),
        ("无", None),
    ],
)
def test_one_cell_of_every_shape(cell: str, expected: object) -> None:
    (found,) = read([cell]) if cell not in ("", "n/a", "无") else read([cell, "2024-03-05"])[:1]
    assert found == expected


@pytest.mark.parametrize(
    ("cells", "first_day"),
    [
        (["03/04/2024", "15/06/2024"], "2024-04-03"),
        (["03/04/2024", "06/15/2024"], "2024-03-04"),
        (["3-4-2024 10:00", "15-6-2024 11:00"], "2024-04-03T10:00"),
        (["03.04.2024", "05.06.2024"], "2024-04-03"),
        (["03/04/99", "15/06/24"], "1999-04-03"),
        (["24-01-05", "99-12-31"], "2024-01-05"),
        (["05/05/2024"], "2024-05-05"),
    ],
)
def test_the_column_decides_what_comes_first(cells: list[str], first_day: str) -> None:
    found, seconds, bad = settle_times(pa.array(cells), "when")
    assert not bad.any()
    assert seconds[0] == utc(first_day)
    assert found.questions == ()


@pytest.mark.parametrize(
    "cells",
    [
        ["03/04/2024", "05/06/2024"],
        ["31/01/2024", "01/31/2024"],
        ["24-01-05", "24-01-20"],
        ["24/01/05", "23/02/20"],
    ],
)
def test_what_the_column_leaves_open_is_asked(cells: list[str]) -> None:
    found, _, _ = settle_times(pa.array(cells), "when")
    assert [question.id for question in found.questions] == ["day_first"]
    with pytest.raises(DataError, match=r"day/month or month/day.*--map day_first=yes or --map day_first=no"):
        refuse_unanswered(found.questions, "file")
    with pytest.raises(DataError, match=cells[0]):
        parse_times(pa.array(cells), "when")
    assert not parse_times(pa.array(cells), "when", strict=False)[1].any()


def test_an_answer_decides() -> None:
    assert read(["03/04/2024", "01/31/2024"], day_first="yes") == [utc("2024-04-03"), BAD]
    assert read(["03/04/2024", "01/31/2024"], day_first="no") == [utc("2024-03-04"), utc("2024-01-31")]
    assert read(["03.04.2024"], day_first="no") == [utc("2024-03-04")]
    assert read(["24-01-05", "24-01-20"], day_first="no") == [utc("2024-01-05"), utc("2024-01-20")]
    assert read(["24-01-05", "24-01-20"], day_first="yes") == [utc("2005-01-24"), utc("2020-01-24")]
    assert read(["01-02-05"], day_first="no") == [utc("2005-01-02")]


@pytest.mark.parametrize(
    ("cells", "options", "expected"),
    [
        (["1704067200", "1704067201.5"], {}, [1704067200, 1704067201.5]),
        (["1704067200000", "1704067200250"], {}, [1704067200, 1704067200.25]),
        (["1704067200000000"], {}, [1704067200]),
        (["1704067200000000000"], {}, [1704067200]),
        (["1.7040672E9"], {}, [1704067200]),
        (["1704067200000", "1704067201000", "1704067200"], {}, [1704067200, 1704067201, BAD]),
        (["1704067200", "0", "-1", "99999999999"], {}, [1704067200, None, None, BAD]),
        (["1", "2", "30"], {}, [1, 2, 30]),
        (["1", "2", "soon"], {}, [1, 2, BAD]),
        (["1704067200", "1704067200", "2024-01-01"], {}, [1704067200, 1704067200, BAD]),
        (["45356.5", "45357"], {}, [MARCH_5 + 43200, MARCH_5 + 86400]),
        (["45356", "45357"], {"time_unit": "excel"}, [MARCH_5, MARCH_5 + 86400]),
        (["45356", "45357"], {}, [45356, 45357]),
        (["45356,5"], {"time_unit": "excel"}, [MARCH_5 + 43200]),
        (["1704067"], {"time_unit": "s"}, [1704067]),
        (["15:04", "3:04 pm", "23:59:59"], {}, [54240, 54240, 86399]),
    ],
)
def test_numbers_are_read_in_one_unit(cells: list[str], options: dict[str, str], expected: list[object]) -> None:
    assert read(cells, **options) == expected


def test_columns_that_say_what_they_are() -> None:
    assert read(["45356", "45357"], "purchase_date") == [MARCH_5, MARCH_5 + 86400]
    assert read(["2023", "2024"], "year") == [utc("2023-01-01"), utc("2024-01-01")]


def test_times_without_a_zone_are_where_somebody_says() -> None:
    cells = ["2024-07-05 10:00", "2024-01-05 10:00", "2024-07-05T10:00Z"]
    assert read(cells, timezone="Europe/Berlin") == [
        utc("2024-07-05T08:00"),
        utc("2024-01-05T09:00"),
        utc("2024-07-05T10:00"),
    ]
    assert read(cells)[0] == utc("2024-07-05T10:00")


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["1704067200000"], "milliseconds"),
        (["1", "2"], "order"),
        (["45356.5"], "spreadsheet"),
        (["03/04/2024", "15/06/2024"], "day/month/year"),
        (["03.04.2024"], "day.month.year"),
        (["03/04/99"], "two digits"),
        (["2024-03"], "first day"),
        (["15:04"], "one day only"),
        (["2024-01-05", "2024-01-05T10:00Z"], "name a zone"),
        (["2024-01-05", "N/A"], "'N/A' are taken as blank"),
    ],
)
def test_notes_say_what_could_be_otherwise(cells: list[str], words: str) -> None:
    assert words in " ".join(settle_times(pa.array(cells), "when")[0].notes)


def test_plain_columns_need_no_note() -> None:
    assert settle_times(pa.array(["2024-01-05", ""]), "when")[0].notes == ()
    assert settle_times(pa.array(["1704067200"]), "when")[0].notes == ()


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["2024-01-05 10:00 CST"], "time zone"),
        (["2024-02-30"], "no day that exists"),
        (["2024-01-05 25:00"], "no time of a day"),
        (["soon"], "not a date"),
        (["1704067200000", "1704067200000", "1704067200"], "looks like seconds"),
        (["1704067200", "1704067200", "17040672000000"], "outside the years"),
        (["1704067200", "1704067200", "soon"], "not a number"),
        (["13/01/2024", "14/01/2024", "14/13/2024"], "day first"),
    ],
)
def test_refusals_say_why(cells: list[str], words: str) -> None:
    found, _, bad = settle_times(pa.array(cells), "when")
    assert words in found.reason(cells[int(np.flatnonzero(bad)[-1])])


def test_missing_times_are_a_question_with_an_answer() -> None:
    found = decide_times(pa.array(["2024-01-05", ""]), "when")
    (question,) = found.questions
    assert (question.id, question.default) == ("missing_time", "refuse")
    refuse_unanswered(found.questions, "file")
    assert decide_times(pa.array(["", ""]), "when").questions == ()


def test_a_row_without_a_time_takes_that_of_the_row_before() -> None:
    nan = math.nan
    filled, last = carry_times(np.array([nan, 5.0, nan, 3.0, nan]))
    np.testing.assert_array_equal(filled, [nan, 5, 5, 3, 3])
    again, last = carry_times(np.array([nan, 9.0]), last)
    np.testing.assert_array_equal(again, [3, 9])
    assert carry_times(np.zeros(0), last)[1] == 9


# ------------------------------------------------------------------------------------------------ against Python


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.datetimes(datetime.datetime(1901, 1, 1), datetime.datetime(2199, 1, 1)), min_size=1, max_size=12),
    st.sampled_from(
        ["%Y-%m-%dT%H:%M:%S.%f", "%Y/%m/%d %H:%M:%S", "%d.%m.%Y %H:%M", "%d %b %Y", "%B %d, %Y %I:%M %p",
         "%Y年%m月%d日 %H:%M", "%Y%m%dT%H%M%S", "%G-W%V-%u", "%Y-%j"]
    ),
)  # fmt: skip
def test_what_python_writes_is_read_back(moments: list[datetime.datetime], form: str) -> None:
    cells = [moment.strftime(form) for moment in moments]
    expected = [utc(datetime.datetime.strptime(cell, form).isoformat()) for cell in cells]
    assert read(cells) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=16) | st.text("0123456789-/:. TZ年月日", max_size=16), max_size=8))
def test_any_text_is_a_time_blank_or_refused(cells: list[str]) -> None:
    for value in read(cells):
        assert value is BAD or value is None or -2.3e9 < value < 7.3e9  # type: ignore[operator]


CELLS = st.sampled_from(
    [
        *("2024-01-05", "2024-01-05T10:00Z", "03/04/2024", "31/01/2024", "01/31/2024", "05.06.2024", "3/4/24"),
        *("99-12-31", "24-01-05", "1704067200", "1704067200000", "0", "", "NA", "soon", "2024年3月5日", "15:04"),
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=10), st.lists(CELLS, max_size=10), st.lists(st.integers(0, 20), max_size=4))
def test_blocks_of_any_size_give_the_same_times(first: list[str], rest: list[str], cuts: list[int]) -> None:
    """The first cells are what the column is judged by; whatever follows, the cuts do not matter."""
    cells = first + rest
    start = decide_times(pa.array(first, pa.string()), "when")
    whole, expected = in_blocks(start, cells, [])
    cut, found = in_blocks(start, cells, cuts)
    assert found == expected
    assert cut == whole
    assert [q.id for q in cut.questions] == [q.id for q in whole.questions]


@pytest.mark.parametrize(
    "cell",
    [
        *("Reviewed in the United States on March 5, 2024", "Reviewed in the United Kingdom 🇬🇧 on 5 March 2024"),
        *("Rezension aus Deutschland vom 5. März 2024", "Bewertet in Deutschland am 5. März 2024"),
        *("Commenté en France le 5 mars 2024", "Reseñado en España el 5 de marzo de 2024"),
        *("Recensito in Italia il 5 marzo 2024", "Avaliado no Brasil em 5 de março de 2024"),
        *("Beoordeeld in Nederland op 5 maart 2024", "2024年3月5日に日本でレビュー済み", "Posted on Mar 5, 2024"),
    ],
)
def test_dates_as_shops_write_them(cell: str) -> None:
    assert read([cell]) == [MARCH_5]


@pytest.mark.parametrize("cell", ["Reviewed in the United States", "sold on 5", "on and on", "in March on 5"])
def test_words_that_only_begin_so_are_no_dates(cell: str) -> None:
    assert read([cell, "2024-03-05"]) == [BAD, MARCH_5]


def test_reviews_of_many_countries_are_one_column() -> None:
    places = ["the United States", "Canada", "Australia", "India"]
    cells = [f"Reviewed in {places[n % 4]} on March {n % 28 + 1}, 2024" for n in range(200)]
    assert read(cells) == [utc("2024-03-01") + n % 28 * 86400 for n in range(200)]
