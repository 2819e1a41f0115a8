"""The data room: files -> Dataset -> Split -> queries."""

from llmrec_core.data._role_names import KINDS, LAYOUTS, NEEDED_OF, ROLES_OF
from llmrec_core.data._values import Question, UnansweredError
from llmrec_core.data.dataset import Dataset, DatasetMeta, SourceFile
from llmrec_core.data.drift import Drift, drift
from llmrec_core.data.export import safe_csv
from llmrec_core.data.guessing import ImportGuess, guess_files, guess_roles, part_hint
from llmrec_core.data.importers import FileReport, ImportReport, import_files
from llmrec_core.data.portrait import Portrait, portrait, stored_portrait
from llmrec_core.data.public import PUBLIC, PublicDataset, import_public, import_sample, sample_folder
from llmrec_core.data.splitting import (
    COMMON_FIELDS,
    PROTOCOLS,
    ContinuedSplit,
    EvalSet,
    LabelledRows,
    ProtocolGuide,
    Split,
    SplitPicture,
    continue_split,
    make_split,
    split_picture,
)
from llmrec_core.data.store import DatasetStore
from llmrec_core.data.wheels import extract_members, fetch_wheel

__all__ = [
    "COMMON_FIELDS",
    "KINDS",
    "LAYOUTS",
    "NEEDED_OF",
    "PROTOCOLS",
    "PUBLIC",
    "ROLES_OF",
    "ContinuedSplit",
    "Dataset",
    "DatasetMeta",
    "DatasetStore",
    "Drift",
    "EvalSet",
    "FileReport",
    "ImportGuess",
    "ImportReport",
    "LabelledRows",
    "Portrait",
    "ProtocolGuide",
    "PublicDataset",
    "Question",
    "SourceFile",
    "Split",
    "SplitPicture",
    "UnansweredError",
    "continue_split",
    "drift",
    "extract_members",
    "fetch_wheel",
    "guess_files",
    "guess_roles",
    "import_files",
    "import_public",
    "import_sample",
    "make_split",
    "part_hint",
    "portrait",
    "safe_csv",
    "sample_folder",
    "split_picture",
    "stored_portrait",
]
