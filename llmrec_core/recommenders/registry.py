"""Families by name: building one from a spec, loading one from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_core.baselines import BASELINES
from llmrec_core.contracts import FitContext, Recommender
from llmrec_core.errors import ModelError
from llmrec_core.recommenders.blend import BlendRecommender, make_retriever
from llmrec_core.recommenders.content_knn import ContentKNNRecommender
from llmrec_core.recommenders.cross_encoder import CrossEncoderRecommender
from llmrec_core.recommenders.generative import GenerativeRecommender
from llmrec_core.recommenders.onnx_encoder import OnnxCrossEncoder
from llmrec_core.recommenders.pipeline import PipelineRecommender
from llmrec_core.recommenders.ratings import RatingsRecommender
from llmrec_core.recommenders.sequential import SequentialRecommender
from llmrec_core.recommenders.two_tower import TwoTowerRecommender
from llmrec_core.saved import HEAD_FILE, read_head
from llmrec_core.specs import CrossEncoderSpec, GenerativeSpec, PipelineSpec, RecommenderSpec, RunSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

FAMILIES: dict[str, type[Recommender]] = {
    **BASELINES,
    ContentKNNRecommender.family: ContentKNNRecommender,
    RatingsRecommender.family: RatingsRecommender,
    CrossEncoderRecommender.family: CrossEncoderRecommender,
    OnnxCrossEncoder.family: OnnxCrossEncoder,
    SequentialRecommender.family: SequentialRecommender,
    TwoTowerRecommender.family: TwoTowerRecommender,
    GenerativeRecommender.family: GenerativeRecommender,
    BlendRecommender.family: BlendRecommender,
    PipelineRecommender.family: PipelineRecommender,
}


def build(run: RunSpec, part: RecommenderSpec) -> Recommender:
    """An unfitted recommender.

    Args:
        run: what the part is trained with: prompt, objectives, training, seed.
        part: usually ``run.recommender``.
    """
    if isinstance(part, PipelineSpec):
        return PipelineRecommender(run, part)
    if isinstance(part, CrossEncoderSpec):
        return CrossEncoderRecommender(run, part)
    if isinstance(part, GenerativeSpec):
        return GenerativeRecommender(run, part)
    return make_retriever(part, run.prompt)


def load(folder: Path, dataset: Dataset, ctx: FitContext) -> Recommender:
    """The recommender saved in ``folder``, whatever its family.

    Raises:
        ModelError: missing or damaged parts, an unknown family, or another dataset's catalogue.
    """
    family = read_head(folder)["family"]
    try:
        found = FAMILIES[family]
    except KeyError:
        raise ModelError(
            f"it is of an unknown family {family[:80]!r}.",
            where=str(folder / HEAD_FILE),
            fix=f"This version knows {', '.join(FAMILIES)}.",
        ) from None
    return found.load(folder, dataset, ctx)
