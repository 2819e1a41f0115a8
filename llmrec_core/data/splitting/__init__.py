"""Splits: a dataset cut into train, validation and test rows by a named protocol."""

from llmrec_core.data.splitting.continuing import ContinuedSplit, continue_split
from llmrec_core.data.splitting.cutting import make_split, resolved
from llmrec_core.data.splitting.picture import SplitPicture, split_picture
from llmrec_core.data.splitting.protocols import PART
from llmrec_core.data.splitting.split import EvalSet, HeldOut, LabelledRows, Split
from llmrec_core.data.splitting.words import COMMON_FIELDS, PROTOCOLS, ProtocolGuide

__all__ = [
    "COMMON_FIELDS",
    "PART",
    "PROTOCOLS",
    "ContinuedSplit",
    "EvalSet",
    "HeldOut",
    "LabelledRows",
    "ProtocolGuide",
    "Split",
    "SplitPicture",
    "continue_split",
    "make_split",
    "resolved",
    "split_picture",
]
