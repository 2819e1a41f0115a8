"""One spec a family of recommenders, and which family may stand where.

A new family is a spec class here, in the unions below it, and one file in ``recommenders/`` or ``baselines/``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from llmrec_core.specs.base import Spec
from llmrec_core.specs.training import BehaviourSpec, TuningSpec


class PopularitySpec(Spec):
    family: Literal["popularity"] = "popularity"
    half_life_days: float | None = Field(
        None, gt=0, description="an interaction counts half after so many days before the last one; empty: all alike"
    )


class ItemKNNSpec(Spec):
    family: Literal["item-knn"] = "item-knn"
    window: int = Field(20, ge=1, description="two items of one user are co-visited if at most this many steps apart")
    step_decay: float = Field(0.9, gt=0, le=1, description="weight of a co-visit for each step apart")
    last_items: int = Field(20, ge=1, description="most recent history items that vote")
    recency_decay: float = Field(0.8, gt=0, le=1, description="weight of a vote for each step back in the history")
    shrink: float = Field(5.0, ge=0, description="added to the norms of the cosine: doubts rare co-visits")
    direction: Literal["forward", "both"] = Field(
        "forward", description="forward: only what came after an item speaks for it; both: what came before it too"
    )


class UserKNNSpec(Spec):
    family: Literal["user-knn"] = "user-knn"
    n_neighbours: int = Field(100, ge=1, description="most similar users that vote")
    last_items: int = Field(50, ge=1, description="most recent history items that are compared")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")
    shrink: float = Field(1.0, ge=0, description="added to the norms of the cosine: doubts short histories")


class EASESpec(Spec):
    family: Literal["ease"] = "ease"
    l2: float = Field(200.0, gt=0, description="ridge on the item-item weights")
    last_items: int = Field(200, ge=1, description="most recent history items that vote")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a vote for each step back; 1: published EASE")


class SVDSpec(Spec):
    family: Literal["svd"] = "svd"
    n_factors: int = Field(32, ge=1, le=2048, description="singular vectors kept")
    last_items: int = Field(200, ge=1, description="most recent history items that speak for the user")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")


class ALSSpec(Spec):
    family: Literal["als"] = "als"
    n_factors: int = Field(64, ge=1, le=2048, description="latent factors")
    l2: float = Field(0.05, gt=0, description="ridge on the factors")
    alpha: float = Field(10.0, gt=0, description="confidence in an interaction over a missing one: 1 + alpha")
    n_iterations: int = Field(15, ge=1, le=1000, description="passes over users and items")
    last_items: int = Field(200, ge=1, description="most recent history items that speak for the user")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")


class BPRSpec(Spec):
    family: Literal["bpr"] = "bpr"
    n_factors: int = Field(64, ge=1, le=2048, description="latent factors")
    learning_rate: float = Field(0.02, gt=0, lt=1, description="step of stochastic gradient descent")
    l2: float = Field(0.01, ge=0, description="ridge on the factors")
    n_iterations: int = Field(100, ge=1, le=10_000, description="passes over the interactions")
    last_items: int = Field(200, ge=1, description="most recent history items that speak for the user")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a history item for each step back")


class TrendSpec(Spec):
    family: Literal["trend"] = "trend"
    half_life_days: float = Field(
        60.0, gt=0, description="an interaction counts half after so many days in the recent share"
    )
    smoothing: float = Field(
        0.1, gt=0, description="added to both shares, as a part of an even spread: doubts rare items"
    )


class BiasKNNSpec(Spec):
    family: Literal["bias-knn"] = "bias-knn"
    n_neighbours: int = Field(40, ge=1, description="rated history items nearest to the candidate that vote")
    damping: float = Field(5.0, ge=0, description="ratings that an offset of an item or user is outweighed by")
    shrink: float = Field(100.0, ge=0, description="raters in common that a correlation is outweighed by")


class RatingFactorsFields(Spec):
    """What every model of rating factors has."""

    n_factors: int = Field(20, ge=1, le=200, description="latent factors beside the offsets of user and item")
    n_iterations: int = Field(40, ge=1, le=1000, description="passes over users and items")
    seen: bool = Field(
        True, description="what somebody rated at all, and by whom an item was, says something too (as in SVD++)"
    )
    prior_ridge: float = Field(2.0, gt=0, description="ridge on what who-rated-what and texts say about the factors")
    n_models: int = Field(2, ge=1, le=50, description="models that begin with other random factors, averaged")


class RatingFactorsSpec(RatingFactorsFields):
    family: Literal["rating-factors"] = "rating-factors"


class ItemTextFields(Spec):
    """How item texts become vectors, or counts of words."""

    model: str | None = Field(
        "minilm",
        max_length=1024,
        description="language model that reads the item texts; empty: their words are counted",
    )
    item_fields: tuple[str, ...] = Field(
        (), description="item columns read beside the title; empty means the category columns and the year"
    )
    facts: int = Field(0, ge=0, le=1000, description="facts of the knowledge graph read of each item, at most")
    n_text: int = Field(64, ge=1, le=4096, description="whitened dimensions kept of the text vectors")


class RatingsSpec(RatingFactorsFields, ItemTextFields):
    family: Literal["ratings"] = "ratings"
    text_weight: float = Field(
        1.0, gt=0, le=100, description="length of a text beside that of the raters of an item, which is 1"
    )


class ContentKNNSpec(ItemTextFields):
    family: Literal["content-knn"] = "content-knn"
    last_items: int = Field(50, ge=1, description="most recent history items that vote")
    recency_decay: float = Field(0.9, gt=0, le=1, description="weight of a vote for each step back in the history")
    rating_weight: float = Field(
        0.3, ge=0, le=1, description="how much more the best rating weighs than a middling one, and the worst less"
    )


#: Baselines that rank whole catalogues by what comes next; bias-kNN and rating factors predict ratings instead.
_RankingBaseline = PopularitySpec | ItemKNNSpec | UserKNNSpec | EASESpec | SVDSpec | ALSSpec | BPRSpec | TrendSpec
_Baseline = _RankingBaseline | BiasKNNSpec | RatingFactorsSpec
#: What may stand beside a run as its floor.
BaselineSpec = Annotated[_Baseline | ContentKNNSpec, Field(discriminator="family")]


class CrossEncoderSpec(Spec):
    family: Literal["cross-encoder"] = "cross-encoder"
    model: str = Field(
        "minilm", min_length=1, max_length=1024, description="catalogue name, local folder, or hub:owner/name"
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto", description="how token states become one vector; auto: mean for encoders, last for decoders"
    )
    share_history: bool = Field(
        True,
        description="read a history once for all its candidates (its words then do not look at the candidate); off: "
        "each prompt alone, several times slower",
    )
    head: Literal["linear", "label-words"] = Field(
        "linear",
        description="linear: a trained layer a task; label-words: what the model itself would write next, yes or no",
    )
    label_words: tuple[str, ...] = Field(
        ("Yes", "No"), min_length=2, max_length=2, description="answers of label-words: for, against; one token each"
    )
    tuning: TuningSpec = Field(default_factory=lambda: TuningSpec(), description="which weights are trained")
    behaviour: BehaviourSpec | None = Field(
        None,
        description="numbers beside the text (like rates, means, neighbours, popularity, age); the text then learns "
        "what they do not say; empty: text alone",
    )

    @model_validator(mode="after")
    def _heads_can_answer(self) -> CrossEncoderSpec:
        if self.head == "linear" and self.tuning.method == "none":
            raise ValueError(
                "tuning.method: untrained linear heads would guess; train, or let a decoder answer in words "
                "(head: label-words, as the preset zero-shot does)"
            )
        if self.head == "label-words" and self.pooling != "auto":
            raise ValueError("pooling: label words are read at the last or the mask token; leave it on auto")
        return self


class ListwiseSpec(Spec):
    family: Literal["listwise"] = "listwise"
    model: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=1024,
        description="decoder: catalogue name, local folder, hub:owner/name",
    )
    window: int = Field(
        20,
        ge=2,
        le=26,
        title="Candidates in one prompt",
        description="candidates lettered in one prompt; longer lists are read in overlapping windows",
    )
    n_permutations: int = Field(
        2, ge=1, le=16, description="orders in which a list is read, each second one backwards; scores are averaged"
    )
    share_history: bool = Field(True, description="read a history once for all orders of a list")
    tuning: TuningSpec = Field(
        default_factory=lambda: TuningSpec(method="lora"),
        description="which weights are trained; none: the model answers as it came",
    )
    #: What a cross-encoder may choose is fixed here: the model's own letters, read at the last token, and nothing else.
    head: ClassVar[Literal["label-words"]] = "label-words"
    label_words: ClassVar[tuple[str, ...]] = ()
    pooling: ClassVar[Literal["last"]] = "last"
    behaviour: ClassVar[None] = None


class SequentialSpec(Spec):
    family: Literal["sequential"] = "sequential"
    model: str | None = Field(
        "minilm",
        max_length=1024,
        description="language model that reads the item texts, as it came or tuned (the folder `model` in a finished "
        "run's artifacts, after full tuning); empty: ids alone",
    )
    item_fields: tuple[str, ...] = Field(
        (), description="item columns read beside the title; empty means the category columns of the dataset"
    )
    facts: int = Field(0, ge=0, le=1000, description="facts of the knowledge graph read of each item, at most")
    use_vectors: bool = Field(
        True,
        title="Use feature vectors of items",
        description="item vectors that came with the data stand beside the text, through a learned gate",
    )
    n_text: int = Field(128, ge=1, le=4096, description="whitened dimensions kept of the text vectors")
    width: int = Field(128, ge=8, le=2048, multiple_of=8, description="size of item vectors and states")
    n_layers: int = Field(2, ge=1, le=24, description="transformer layers")
    n_heads: int = Field(4, ge=1, le=64, description="attention heads; width must be a multiple")
    max_history: int = Field(50, ge=1, le=1000, description="most recent history items that are read")
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout of inputs and layers")
    id_bound: float = Field(1.0, ge=0, description="longest id delta; 0: items are their text alone")
    epochs: int = Field(60, ge=1, le=1000, description="most passes over the training histories")
    patience: int = Field(10, ge=0, description="epochs without gain on validation before stopping; 0: never stop")
    reverse: float = Field(
        0.5, ge=0, le=1, description="share of training histories read backwards: what came before says much as well"
    )
    average: float = Field(
        0.995, ge=0, lt=1, description="the weights kept are a running mean, which forgets 1 - this a step; 0: the last"
    )
    batch_size: int = Field(64, ge=1, description="histories a step")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="AdamW weight decay")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all items")
    full_softmax_items: int = Field(
        50_000, ge=0, description="up to so many items the loss runs over all of them; above, over drawn ones (logQ)"
    )
    n_negatives: int = Field(2048, ge=1, description="items drawn a step for the sampled softmax")
    validation_users: int = Field(1000, ge=10, description="validation users whose ranking decides when to stop")

    @model_validator(mode="after")
    def _heads_fit(self) -> SequentialSpec:
        if self.width % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} heads do not divide a width of {self.width}")
        if self.model is None and self.id_bound == 0:
            raise ValueError("id_bound: without texts and without id deltas all items would be the same")
        return self


class TwoTowerSpec(Spec):
    family: Literal["two-tower"] = "two-tower"
    model: str = Field(
        "minilm", min_length=1, max_length=1024, description="catalogue name, local folder, or hub:owner/name"
    )
    user: Literal["history", "prompt"] = Field(
        "history",
        description="what stands for a user. history: a small transformer over the texts of the history's items; "
        "prompt: the prompt without its candidate, read by the language model, some hundred times slower",
    )
    item_fields: tuple[str, ...] = Field(
        (), description="item columns read beside the title; empty means the category columns and the year"
    )
    facts: int = Field(0, ge=0, le=1000, description="facts of the knowledge graph read of each item, at most")
    n_text: int = Field(256, ge=1, le=4096, description="whitened dimensions kept of the text vectors")
    width: int = Field(128, ge=8, le=2048, multiple_of=8, description="size of the vectors of users and items")
    n_layers: int = Field(2, ge=1, le=24, description="transformer layers over the history")
    n_heads: int = Field(4, ge=1, le=64, description="attention heads; width must be a multiple")
    max_history: int = Field(50, ge=1, le=1000, description="most recent history items that are read")
    id_bound: float = Field(
        1.0, ge=0, description="longest id delta beside a text, whose length is about 1; 0: items are their text alone"
    )
    reverse: float = Field(
        0.5, ge=0, le=1, description="share of training histories read backwards: what came before says much as well"
    )
    average: float = Field(
        0.995,
        ge=0,
        lt=1,
        description="the weights kept are a running mean, which forgets 1 - this a step; 0: the last. Not while the "
        "language model is trained",
    )
    max_prompts: int = Field(2000, ge=16, description="training prompts drawn by seed, where prompts stand for users")
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout over the history")
    temperature: float = Field(0.1, gt=0, le=10, description="products are divided by it before the softmax")
    n_negatives: int = Field(
        2048, ge=1, description="items drawn uniformly a step, beside the other targets of the batch (logQ-corrected)"
    )
    epochs: int = Field(40, ge=1, le=1000, description="most passes while the language model stays as it came (fast)")
    tuning: TuningSpec = Field(
        default_factory=lambda: TuningSpec(), description="which of its weights are trained then"
    )
    tuning_steps: int = Field(0, ge=0, description="steps after that, with the language model; 0: it stays as it came")
    tuning_texts: int = Field(128, ge=1, description="texts that such a step reads anew; the others as last read")
    tuning_rate: float = Field(1e-5, gt=0, lt=1, description="peak learning rate of the language model")
    patience: int = Field(8, ge=0, description="validations without gain before stopping; 0: never stop")
    batch_size: int = Field(32, ge=1, description="histories (or prompts) a step")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="peak learning rate of the towers")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="AdamW weight decay")
    validation_users: int = Field(1000, ge=10, description="validation users whose ranking decides when to stop")
    approximate_above: int = Field(
        200_000, ge=0, description="larger catalogues are searched through FAISS where it is installed; others exactly"
    )
    recall: float = Field(0.95, gt=0, le=1, description="share of the exact best items that FAISS must find")

    @model_validator(mode="after")
    def _heads_fit(self) -> TwoTowerSpec:
        if self.width % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} heads do not divide a width of {self.width}")
        if self.tuning.method == "adalora":
            raise ValueError("tuning.method: two towers give no ranks to adapters while they are trained; choose lora")
        return self


MemberSpec = Annotated[_RankingBaseline | ContentKNNSpec | SequentialSpec | TwoTowerSpec, Field(discriminator="family")]


class BlendSpec(Spec):
    family: Literal["blend"] = "blend"
    members: tuple[MemberSpec, ...] = Field(
        default_factory=lambda: (ItemKNNSpec(direction="both"), EASESpec(), BPRSpec()),
        min_length=1,
        max_length=10,
        description="recommenders whose scores are added",
    )
    weights: tuple[float, ...] | None = Field(
        None, description="weight of each member; empty: chosen on validation users"
    )
    validation_users: int = Field(1000, ge=10, description="validation users on which the weights are chosen")

    @model_validator(mode="after")
    def _weights_fit(self) -> BlendSpec:
        if self.weights is not None:
            if len(self.weights) != len(self.members):
                raise ValueError(f"weights: {len(self.weights)} weights for {len(self.members)} members")
            if any(not 0 <= weight < float("inf") for weight in self.weights) or sum(self.weights) <= 0:
                raise ValueError("weights: each must be 0 or more, and one above 0")
        return self


class GenerativeSpec(Spec):
    family: Literal["generative"] = "generative"
    model: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=1024,
        description="decoder: catalogue name, local folder, hub:owner/name",
    )
    loss: Literal["titles", "words"] = Field(
        "titles",
        description="titles: softmax over the words that may follow in some title of the catalogue; words: over all "
        "words, as in pretraining",
    )
    prior: Literal["model", "popularity"] = Field(
        "model",
        description="how probable titles are before any history is known: as the model finds them, or as often as they "
        "were chosen in training (users without history then get the popular items)",
    )
    max_title_tokens: int = Field(
        32, ge=8, le=512, description="longer titles are cut in their middle, so that beginning and end tell them apart"
    )
    beams: int = Field(32, ge=1, le=4096, description="open branches kept while a ranking is searched; at least k")
    text_field: str | None = Field(
        None,
        max_length=200,
        description="column whose texts the model learns to write: of the items (a description) or of the interactions "
        "(a review); empty: texts are written as the model came",
    )
    text_tokens: int = Field(64, ge=16, le=512, description="longest written text, in tokens")
    text_attempts: int = Field(3, ge=1, le=10, description="texts tried before a plain sentence of facts takes over")
    tuning: TuningSpec = Field(
        default_factory=lambda: TuningSpec(method="lora"),
        description="which weights are trained; word embeddings always stay as they are",
    )


_Retriever = _Baseline | ContentKNNSpec | RatingsSpec | SequentialSpec | TwoTowerSpec | BlendSpec
RetrieverSpec = Annotated[_Retriever, Field(discriminator="family")]


#: What re-ranks the candidates of a retriever.
RankerSpec = Annotated[CrossEncoderSpec | ListwiseSpec | GenerativeSpec, Field(discriminator="family")]


class PipelineSpec(Spec):
    family: Literal["pipeline"] = "pipeline"
    retriever: RetrieverSpec = Field(default_factory=lambda: ItemKNNSpec(), description="finds the candidates")
    ranker: RankerSpec = Field(default_factory=lambda: CrossEncoderSpec(), description="re-ranks them")
    n_candidates: int = Field(20, ge=2, le=1000, description="items retrieved for each query")
    model_weight: float | None = Field(
        None, ge=0, le=1, description="weight of the model in the fused score; empty: chosen on validation"
    )
    fusion_users: int = Field(200, ge=10, description="validation users on which the weight is chosen")

    @field_validator("ranker", mode="before")
    @classmethod
    def _plain_ranker(cls, value: Any) -> Any:
        """A ranker that names no family is a cross-encoder."""
        return {"family": "cross-encoder", **value} if isinstance(value, dict) else value


_Recommender = _Retriever | CrossEncoderSpec | GenerativeSpec | PipelineSpec
RecommenderSpec = Annotated[_Recommender, Field(discriminator="family")]
#: Names of all families that stand by themselves, and of the one that only re-ranks.
FAMILIES: tuple[str, ...] = tuple(
    part.model_fields["family"].default for part in (*get_args(_Recommender), ListwiseSpec)
)


def ranker_of(recommender: RecommenderSpec) -> Any:
    """The part that reads and is trained: the second stage of two, else the recommender itself."""
    return recommender.ranker if isinstance(recommender, PipelineSpec) else recommender
