"""Text cells -> numbers and times, and what their values say about the scale of ratings.

``decide_numbers`` / ``decide_times`` look at the first filled cells of a column and return its format; the format reads
any block of the column (``.numbers(block)``, ``.times(block)``). Reading a large column takes one pass, and another
where a later cell shows that the first ones did not tell all::

    format = decide_times(first_cells, "date", options)
    while True:
        better = format
        for block in blocks:
            values, bad = format.times(block)
            better = better.reconsider(block.filter(bad))
        if better == format:
            break                     # nothing that was refused says otherwise
        format = better               # read again
    refuse_unanswered(format.questions, where)

``parse_numbers`` / ``parse_times`` do all of that for a column in memory.
"""

from llmrec_core.data._values.numbers import NumberFormat, decide_numbers, parse_numbers, settle_numbers
from llmrec_core.data._values.options import Question, UnansweredError, ValueOptions, refuse_unanswered
from llmrec_core.data._values.scales import RatingScale, ask_about_marker, detect_scale, is_count_name
from llmrec_core.data._values.times import TimeFormat, carry_times, decide_times, parse_times, settle_times
from llmrec_core.data._values.words import PROFILE_CELLS

ColumnFormat = NumberFormat | TimeFormat

__all__ = [
    "PROFILE_CELLS",
    "ColumnFormat",
    "NumberFormat",
    "Question",
    "RatingScale",
    "TimeFormat",
    "UnansweredError",
    "ValueOptions",
    "ask_about_marker",
    "carry_times",
    "decide_numbers",
    "decide_times",
    "detect_scale",
    "is_count_name",
    "parse_numbers",
    "parse_times",
    "refuse_unanswered",
    "settle_numbers",
    "settle_times",
]
