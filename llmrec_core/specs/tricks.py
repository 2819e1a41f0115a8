"""What makes a training harder on purpose, so that what it learns holds better: every field is off by default."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from llmrec_core.specs.base import Spec

#: Fields that change the histories or wordings of training prompts.
AUGMENTING = ("crop_history", "mask_history", "reorder_history", "paraphrases")
#: Every field that switches something on.
TRICKS = ("adversarial_epsilon", "r_drop", "label_smoothing", *AUGMENTING)


class TrickFields(Spec):
    """Adversarial embeddings, two dropout passes, softened labels, changed histories and wordings."""

    adversarial_epsilon: float = Field(
        0.0,
        ge=0,
        le=100,
        description="FGM: each step is taken a second time with word embeddings pushed so far (length of the push over "
        "one row of tokens) to where the loss grows; twice the time. For few training prompts or noisy texts; try 0.5 "
        "to 1; 0: off",
    )
    r_drop: float = Field(
        0.0,
        ge=0,
        le=100,
        description="R-drop: two passes with dropout must agree; weight of their disagreement; needs dropout; twice "
        "the time. For few training prompts that a model learns by heart; try 0.5 to 2; 0: off",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a click or rank label that is spread over all answers: for labels that are often wrong, "
        "or scores that are too sure; try 0.1; 0: off",
    )
    crop_history: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of training prompts that show one stretch of the history alone: for long histories whose "
        "taste changes; try 0.2; 0: off",
    )
    mask_history: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of training prompts with scattered history items left out: so that no single item decides; "
        "try 0.2; 0: off",
    )
    reorder_history: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of training prompts with a stretch of the history shuffled: where the order of interactions "
        "means little; try 0.2; 0: off",
    )
    augment_extent: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="how much of a history is cropped away, left out or shuffled, as a share of its items that a "
        "prompt can show",
    )
    paraphrases: tuple[str, ...] = Field(
        (),
        max_length=20,
        description="names or texts of further templates: each training prompt is worded by one of them or by the "
        "prompt's own, drawn by seed; scoring uses its own. For models that hang on one wording; empty means none",
    )

    @field_validator("paraphrases")
    @classmethod
    def _not_endless(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not text.strip() or len(text) > 20_000:
                raise ValueError("paraphrases: each is a template's name or its text, of at most 20,000 characters")
        return texts

    @model_validator(mode="after")
    def _shares_fit(self) -> TrickFields:
        if self.crop_history + self.mask_history + self.reorder_history > 1 + 1e-9:
            raise ValueError(
                "crop_history, mask_history, reorder_history: a prompt is changed in one way, so their shares together "
                "are at most 1"
            )
        return self

    @property
    def augments(self) -> bool:
        """Whether training prompts differ from what is scored later."""
        return any(getattr(self, name) for name in AUGMENTING)
