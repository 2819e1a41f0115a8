"""Results as Plotly figures, tables and HTML. Nothing here computes a result or knows a model.

Figures take plain data: a run's ``result.json``, events, per-user tables, the JSON of an explanation or a portrait.
Empty input gives a figure that says why it is empty. All text from users is escaped.
"""

from llmrec_core.figures.evaluation import difference_figure, metrics_figure, models_of, tradeoff_figure
from llmrec_core.figures.explanations import attention_words_html, waterfall_figure, words_html
from llmrec_core.figures.portraits import drift_figure, portrait_figures
from llmrec_core.figures.splits import split_figures
from llmrec_core.figures.tables import ranking_table, side_by_side
from llmrec_core.figures.theme import empty_figure
from llmrec_core.figures.training import training_figure

__all__ = [
    "attention_words_html",
    "difference_figure",
    "drift_figure",
    "empty_figure",
    "metrics_figure",
    "models_of",
    "portrait_figures",
    "ranking_table",
    "side_by_side",
    "split_figures",
    "tradeoff_figure",
    "training_figure",
    "waterfall_figure",
    "words_html",
]
