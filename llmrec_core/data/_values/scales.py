"""What ratings are measured on: stars, thumbs, a line from -10 to 10, or how often something was played.

A scale is more than the ratings that happen to be there: ratings from 2 to 5 are of a scale from 1 to 5. And a zero
beside stars can say "bad" or "not rated"; where the data does not tell, it is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmrec_core.data._values.options import DEFAULT, Question, ValueOptions

ScaleKind = Literal["none", "constant", "binary", "thumbs", "scale", "counts"]

#: Above it, whole numbers without a known top are taken for counts.
_MAX_SCALE = 100.0
_TOPS = (5.0, 10.0)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+")
_COUNT_WORDS = (
    "count counts cnt play plays listen listens quantity qty view views click clicks times weight hours minutes freq "
    "frequency scrobbles hits"
)
_COUNTED = re.compile(r"(?!(?:dis|ac)count).+counts?|.*(?:播放|次数|数量|点击).*")
#: Whatever else stands in the name ("review_score", "display_rating"), these are no counts.
_RATING_WORDS = "rating ratings score scores star stars grade vote overall evaluation review reviews"
#: Of more different ratings than this a zero that says "none" would stand out as a heap ...
_FINE = 20
#: ... of more than this many times the rows of an ordinary step.
_ORDINARY = 3.0
#: Names that tell that the scale begins at zero: "score_0_10", "0-5", the Net Promoter Score.
_FROM_ZERO = re.compile(
    r"(?i)(?<![a-z])nps(?![a-z])|net.?promoter|(?<!\d)0 ?(?:-|–|_|/|to|bis|\.\.) ?(?:[3-57]|10|100)(?!\d)"
)
#: Numbers that stand for a missing rating wherever they are far from all others, and how far the others may reach.
_MARKERS = {99.0: 10.0, 999.0: 100.0, 9999.0: 100.0}
#: Fewer ratings than this do not show which steps of a scale are used.
_ENOUGH = 50


@dataclass(frozen=True)
class RatingScale:
    """What ratings are measured on.

    Attributes:
        low, high: ends of the scale (not only of what was seen); both 0 without ratings.
        step: distance of neighbouring ratings; 0.0 for a continuous scale.
        kind: ``counts`` (how often something happened: no scale, every row is an interaction), ``constant`` (all are
            the same: no scale), ``binary`` (0 and 1), ``thumbs`` (-1, 0, 1) or ``scale``.
        seen: lowest and highest rating of the data.
        note: what a person should know, or "".
        question: whether zero is a rating, where somebody has to say.
    """

    low: float
    high: float
    step: float
    kind: ScaleKind
    seen: tuple[float, float]
    note: str = ""
    question: Question | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(low, high) where likes can be told from dislikes; None for counts, constants and no ratings."""
        return (self.low, self.high) if self.kind in ("binary", "thumbs", "scale") else None

    def as_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "step": self.step, "kind": self.kind, "note": self.note}


def detect_scale(
    values: npt.ArrayLike,
    counts: npt.ArrayLike | None = None,
    *,
    column: str = "rating",
    options: ValueOptions = DEFAULT,
    out_of: float | None = None,
) -> RatingScale:
    """The scale of a column of ratings.

    Args:
        values: ratings [n], NaN where there is none; all of them, or the distinct ones with their ``counts``.
        counts: how often each value stands there [n]; None: once each.
        column: its name; ``plays`` and the like say that numbers are counts.
        options: ``scale`` and ``zero`` as somebody said them.
        out_of: the top, where cells name it ("4 out of 5").
    """
    distinct, rows = _counted(values, counts)
    question: Question | None = None
    note = ""
    if options.zero == "unrated" and (distinct == 0).any():
        note = "zeros say that there is no rating"
        distinct, rows = distinct[distinct != 0], rows[distinct != 0]
    elif options.zero == "ask" and (options.scale is None or options.scale[0] > 0):
        question, note = _about_zero(distinct, rows, column)
    found = _scale(distinct, rows, column, options, out_of)
    said = "; ".join(text for text in (found.note, note) if text)
    return RatingScale(found.low, found.high, found.step, found.kind, found.seen, said, question)


def is_count_name(column: str) -> bool:
    """Whether a column's name says that its numbers count something: "play_count", "timesPlayed", "hours"."""
    words = [word.lower() for word in _WORDS.findall(column)]
    if set(_RATING_WORDS.split()) & set(words):
        return False
    counting = _COUNT_WORDS.split()
    return any(word in counting or _COUNTED.fullmatch(word) is not None for word in words)


def _scale(
    distinct: npt.NDArray[np.float64],
    rows: npt.NDArray[np.float64],
    column: str,
    options: ValueOptions,
    out_of: float | None,
) -> RatingScale:
    if not len(distinct):
        return RatingScale(0.0, 0.0, 0.0, "none", (0.0, 0.0))
    seen = (float(distinct[0]), float(distinct[-1]))
    step = _step(distinct)
    if options.scale is not None:
        low, high = options.scale
        note = f"ratings on a scale from {low:g} to {high:g}, as was said"
        if seen[0] < low or seen[1] > high:
            note = f"some ratings ({seen[0]:g} to {seen[1]:g}) lie outside the scale from {low:g} to {high:g}"
            low, high = min(low, seen[0]), max(high, seen[1])
        return RatingScale(low, high, step, "scale", seen, note)
    whole = bool((distinct == np.floor(distinct)).all())
    if _are_counts(distinct, rows, column, whole, out_of):
        note = f"column {column!r} counts something (up to {seen[1]:g}): every row is an interaction, without a scale"
        return RatingScale(*seen, step, "counts", seen, f"{note} (scale=LOW..HIGH makes it ratings)")
    if len(distinct) == 1 and out_of is None:
        return RatingScale(seen[0], seen[0], 0.0, "constant", seen)
    values = set(distinct.tolist())
    if values <= {0.0, 1.0} and out_of is None:
        return RatingScale(0.0, 1.0, 1.0, "binary", seen, "ratings of 0 and 1: 1 is a like")
    if values <= {-1.0, 0.0, 1.0} and out_of is None:
        return RatingScale(-1.0, 1.0, 1.0, "thumbs", seen, "ratings from -1 to 1: above 0 is a like")
    low, high = _ends(seen, step, whole, out_of)
    note = ""
    if (low, high) != seen:
        note = (
            f"ratings from {seen[0]:g} to {seen[1]:g} taken as part of a scale from {low:g} to {high:g} "
            f"(scale={seen[0]:g}..{seen[1]:g} says otherwise)"
        )
    return RatingScale(low, high, step, "scale", seen, note)


def _step(distinct: npt.NDArray[np.float64]) -> float:
    """Greatest usual step on which all values lie; 0.0 where there is none."""
    for step in (1.0, 0.5, 0.25, 0.1):
        if np.allclose(distinct / step, np.round(distinct / step), atol=1e-6):
            return step
    return 0.0


def _are_counts(
    distinct: npt.NDArray[np.float64], rows: npt.NDArray[np.float64], column: str, whole: bool, out_of: float | None
) -> bool:
    if not whole or distinct[0] < 0 or out_of is not None:
        return False
    if is_count_name(column):
        return True
    high = float(distinct[-1])
    if high > _MAX_SCALE:
        return True
    # Up to 100, counts show by their long tail: most are the smallest, few reach far.
    half = float(distinct[np.searchsorted(np.cumsum(rows), rows.sum() / 2)])
    return high > max(_TOPS) and half <= high / 5 and int(np.argmax(rows)) == 0 and distinct[0] <= 1


def _ends(seen: tuple[float, float], step: float, whole: bool, out_of: float | None) -> tuple[float, float]:
    """Ends of the smallest usual scale that holds what was seen; what was seen, where nothing speaks for more."""
    low, high = seen
    if out_of is not None and high <= out_of and low >= 0:
        bottom = 0.0 if low < min(step or 1.0, 1.0) or out_of > max(_TOPS) else min(low, step or 1.0, 1.0)
        return bottom, out_of
    if low < 0:
        top = next((top for top in (1.0, *_TOPS) if max(-low, high) <= top), None)
        reaches = top is not None and min(-low, high) >= 0.9 * top
        return (-top, top) if reaches and top is not None else seen
    if low > 1 and step:
        # A scale rarely begins above 1: its lower end was not given by anybody.
        bottom = 0.0 if high > max(_TOPS) else 1.0 if whole or low - 1 < 0.5 else 0.5
        top = next((top for top in (*_TOPS, _MAX_SCALE) if high <= top), high)
        return bottom, top
    if step == 0.5 and low in (0.5, 1.0) and high == 4.5:
        return low, 5.0
    return seen


def _about_zero(
    distinct: npt.NDArray[np.float64], rows: npt.NDArray[np.float64], column: str
) -> tuple[Question | None, str]:
    """(whether zero is a rating, where only a person knows; a note, where the data tells).

    How often zeros stand there tells nothing about stars: a mark for "not rated" may be as rare as any step. So it is
    asked wherever zeros stand beside ratings, but where the scale evidently holds zero:

    * there are ratings below zero (-10..10), or none above 2 (0 and 1, 0..2);
    * the numbers count something;
    * the column's name tells the scale (``score_0_10``, ``NPS``);
    * the scale is fine (percentages, decimals) and zero is one of its steps, not a heap beside them.
    """
    positive = distinct[distinct > 0]
    if not (distinct == 0).any() or len(positive) == 0 or distinct[0] < 0 or positive[-1] <= 2:
        return None, ""
    if positive[-1] > _MAX_SCALE or is_count_name(column):
        return None, ""
    if _are_counts(positive, rows[distinct > 0], column, bool((positive == np.floor(positive)).all()), None):
        return None, ""
    zeros, high = float(rows[distinct == 0][0]), float(positive[-1])
    fine = len(positive) > _FINE and zeros <= max(1.0, _ORDINARY * float(np.median(rows[distinct > 0])))
    if fine or _FROM_ZERO.search(column):
        return None, f"zero is taken as the lowest rating of a scale from 0 to {high:g} (zero=unrated says otherwise)"
    text = (
        f"column {column!r} holds {zeros:,.0f} zeros beside ratings from {positive[0]:g} to {high:g}: "
        "zero can be the lowest rating, or say that there is none."
    )
    return Question("zero", text, ("unrated", "rating")), ""


def ask_about_marker(values: npt.ArrayLike, counts: npt.ArrayLike | None, column: str, table: str) -> Question | None:
    """Whether a number far from all other ratings says that there is none; None where there is no such number.

    Asked about is -1, -9 or -99 below a scale from zero or one, 99 or 999 above a short one, and, among enough ratings,
    any number beyond ten that is more than twice the next one, or three steps above a scale of which every step is
    used (9 beside 1 to 5).

    Args:
        values, counts: as for :func:`detect_scale`.
        table: its name; the answer is ``missing:TABLE=99``, or ``missing:TABLE=none`` for a rating like the others.
    """
    distinct, rows = _counted(values, counts)
    if len(distinct) < 3 or is_count_name(column):
        return None
    value = next((value for value in (distinct[-1], distinct[0]) if _stands_apart(value, distinct, rows)), None)
    if value is None:
        return None
    others = distinct[distinct != value]
    text = (
        f"column {column!r} of {table} holds {value:g} in {float(rows[distinct == value][0]):,.0f} rows, far from the "
        f"other ratings ({others[0]:g} to {others[-1]:g}): it can say that there is no rating, or be one."
    )
    return Question(f"missing:{table.replace('=', '?')}", text, (f"{value:g}", "none"))


def _stands_apart(value: float, distinct: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> bool:
    others = distinct[distinct != value]
    low, high = float(others[0]), float(others[-1])
    if value < 0:
        return (value in (-1.0, -9.0) and low >= 0 and high >= 3) or (value in (-99.0, -999.0, -9999.0) and low >= -10)
    if value < high:
        return False
    if value in _MARKERS:
        return high <= _MARKERS[value]
    if rows.sum() < _ENOUGH or _are_counts(distinct, rows, "", bool((distinct == np.floor(distinct)).all()), None):
        return False
    step = _step(others)
    full = step > 0 and len(others) >= 4 and len(others) == round((high - low) / step) + 1
    return (full and value - high >= 3 * max(step, 1.0)) or (len(others) >= 4 and value > max(2 * high, max(_TOPS)))


def _counted(
    values: npt.ArrayLike, counts: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(distinct values in order, without NaN; how often each stands there)."""
    numbers = np.asarray(values, np.float64).ravel()
    weights = np.ones(len(numbers)) if counts is None else np.asarray(counts, np.float64).ravel()
    known = np.isfinite(numbers)
    # Ratings are stored in single precision: 0.1 and its neighbour are one step, not two.
    distinct, positions = np.unique(np.round(numbers[known], 6), return_inverse=True)
    rows = np.zeros(len(distinct))
    np.add.at(rows, positions, weights[known])
    return distinct, rows
