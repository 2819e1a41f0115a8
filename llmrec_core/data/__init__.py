"""The data room: files -> Dataset -> Split -> queries."""

from llmrec_core.data.dataset import Dataset, DatasetMeta, DatasetStore
from llmrec_core.data.splits import EvalSet, LabelledRows, Split, make_split

__all__ = ["Dataset", "DatasetMeta", "DatasetStore", "EvalSet", "LabelledRows", "Split", "make_split"]
