"""Content-kNN: items whose texts are like the texts of the history. It needs nobody's interactions but the user's own.

score(item) = sum over the history of w * cosine(item, history item), with w falling by recency and rising with the
rating. Vectors are whitened outputs of a language model, or without a model TF-IDF of the words in fewer dimensions
(latent semantic indexing: Deerwester et al., JASIS 1990). So it serves items that nobody has met yet, and it is the
floor for them: what text alone gives without training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from llmrec_core.baselines import HistoryRecommender
from llmrec_core.contracts import Capabilities, FitContext, FloatArray, HistoryItem, IntArray
from llmrec_core.errors import InputError
from llmrec_core.models.catalogue import require_model
from llmrec_core.models.device import resolve_device
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.text_vectors import Whitening, embed_texts
from llmrec_core.recommenders.item_texts import item_texts
from llmrec_core.specs import ContentKNNSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

#: Dimensions that word counts are brought down to.
_N_WORDS = 512
#: A word, or one character of a script that writes without spaces.
_TOKEN = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+"


class ContentKNNRecommender(HistoryRecommender):
    """See the module. An item without text is like nothing; an empty history leaves the order to popularity."""

    family: ClassVar[str] = "content-knn"
    spec_type = ContentKNNSpec
    #: ``scale``: ends of the rating scale, or empty.
    dtypes: ClassVar = {"counts": "int64", "vectors": "float32", "scale": "float64"}

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, similar=True)

    def item_vectors(self) -> FloatArray:
        """Unit text vectors, float32 [n_items, n_dimensions]; zeros for an item without text."""
        self._known_items()
        return self._vectors

    def _learn(self, users: IntArray, items: IntArray, dataset: Dataset, ctx: FitContext) -> None:
        self._scale = np.array(dataset.rating_scale or (), np.float64)
        texts = item_texts(dataset, self.spec.item_fields, facts=self.spec.facts, codes=self.spec.model is None)
        has_text = np.array([bool(text.strip()) for text in texts])
        # Statistics of the texts are those of training items: what else the catalogue holds is not to be known.
        known = np.intersect1d(np.unique(items), np.flatnonzero(has_text))
        if len(known) < 2:
            known = np.flatnonzero(has_text)
        vectors = self._counted(texts, known, ctx) if self.spec.model is None else self._read(texts, known, ctx)
        vectors = vectors * has_text[:, None]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._vectors = (vectors / np.maximum(lengths, 1e-9)).astype(np.float32)

    def _read(self, texts: list[str], known: IntArray, ctx: FitContext) -> npt.NDArray[Any]:
        """Whitened vectors of the language model."""
        if ctx.workspace_models is None:
            raise InputError(
                "a text model needs the folder of prepared models.", fix="Set FitContext.workspace_models."
            )
        folder = require_model(ctx.workspace_models, self.spec.model)
        backbone = load_backbone(folder, device=resolve_device(ctx.device), trainable=False)
        vectors = embed_texts(backbone, texts)
        return Whitening.fit(vectors[known] if len(known) else vectors, self.spec.n_text).apply(vectors)

    @staticmethod
    def _counted(texts: list[str], known: IntArray, ctx: FitContext) -> npt.NDArray[Any]:
        """TF-IDF in at most ``_N_WORDS`` dimensions; words that no training item has are not known."""
        counter = TfidfVectorizer(sublinear_tf=True, token_pattern=_TOKEN)
        try:
            learnt = counter.fit_transform([texts[item] for item in known])
        except ValueError:
            # No text has a word.
            return np.zeros((len(texts), 1), np.float32)
        counted = counter.transform(texts)
        if min(learnt.shape) <= 2:
            return np.asarray(counted.toarray(), np.float32)
        reduce = TruncatedSVD(min(_N_WORDS, min(learnt.shape) - 1), random_state=ctx.seed).fit(learnt)
        return np.asarray(reduce.transform(counted), np.float32)

    def _weight_of(self, past: HistoryItem) -> float:
        if past.rating is None or not len(self._scale):
            return 1.0
        low, high = self._scale.tolist()
        place = min(1.0, max(0.0, (past.rating - low) / (high - low)))
        return float(1.0 + self.spec.rating_weight * (2.0 * place - 1.0))

    def _block_scores(self, votes: sp.csr_array) -> npt.NDArray[Any]:
        # Row by row, so that a score does not depend on which other queries are asked with it.
        tastes = np.ascontiguousarray(votes @ self._vectors, np.float32)
        scores = np.empty((len(tastes), len(self._vectors)), np.float32)
        for row, taste in enumerate(tastes):
            np.dot(self._vectors, taste, out=scores[row])
        return scores

    def _learnt(self) -> dict[str, npt.NDArray[Any]]:
        return {"vectors": self._vectors, "scale": self._scale}

    def _take_learnt(self, arrays: Any, n_items: int) -> None:
        self._vectors, self._scale = arrays["vectors"], arrays["scale"]
        sound = self._vectors.ndim == 2 and len(self._vectors) == n_items and np.isfinite(self._vectors).all()
        low, high = self._scale.tolist() if len(self._scale) else (0.0, 1.0)
        if not sound or not -np.inf < low < high < np.inf:
            raise ValueError("the arrays do not fit")
