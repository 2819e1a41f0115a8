"""Answers in words: a language model's own head, cut down to the few words that count as answers.

The model is asked a question in its prompt, and what it would write next says the score: for a click the logit of
" Yes" minus the logit of " No", for a rating the mean of the digits under their probabilities, for a list of lettered
candidates the logit of each letter. Decoders answer at the last token, encoders at a mask token. Of the head's matrix
only the rows of these words are read from the files, and they stay as they came: training moves the layers below.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from llmrec_core.errors import ModelError, SpecError
from llmrec_core.models.checking import read_json_object
from llmrec_core.models.loading import Backbone, quiet
from llmrec_core.specs import Task

#: What stands before an answer while its token is looked up; the last word of every starter that asks a question.
_BEFORE = "Answer:"
#: The most answers that a rating may have; finer scales are for linear heads.
_MAX_RATINGS = 11
#: Parts of weight names: as older checkpoints have them, as transformers has them now.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias", "embed_out.": "lm_head."}


def answer_token(tokenizer: Tokenizer, word: str, where: str = "recommender.label_words") -> int:
    """The one token with which ``word`` goes on after a prompt that ends in a colon.

    A space is put between, but not before scripts that write without spaces (Chinese, Japanese).

    Raises:
        SpecError: the word is none, or not a single known token: its logit would be that of its beginning.
    """
    if not word.strip():
        raise SpecError("an answer may not be empty.", where=where, fix="Give a word, such as Yes.")
    word = word.strip()
    joined = word if unicodedata.east_asian_width(word[0]) in "WF" else f" {word}"
    before = tokenizer.encode(_BEFORE, add_special_tokens=False).ids
    whole = tokenizer.encode(_BEFORE + joined, add_special_tokens=False).ids
    found = whole[len(before) :]
    unknown = getattr(tokenizer.model, "unk_token", None)
    if whole[: len(before)] != before or len(found) != 1 or tokenizer.id_to_token(found[0]) == unknown:
        parts = " + ".join(str(tokenizer.id_to_token(i)) for i in found) or "nothing"
        raise SpecError(
            f"{word[:40]!r} is not a single token of this model (it reads {parts[:80]}).",
            where=where,
            fix="Use a short common word of the model's language, such as Yes and No, or choose the linear head.",
        )
    return found[0]


def mask_token(backbone: Backbone) -> tuple[str, int]:
    """Text and id of an encoder's mask token.

    Raises:
        ModelError: the tokenizer names none.
    """
    path = backbone.facts.folder / "tokenizer_config.json"
    settings = read_json_object(path, 4_000_000, path.name) if path.exists() else {}
    named = settings.get("mask_token")
    text = named.get("content") if isinstance(named, dict) else named
    number = backbone.tokenizer.token_to_id(text) if isinstance(text, str) else None
    if number is None:
        raise ModelError(
            "the tokenizer has no mask token, so this encoder cannot answer in words.",
            where=str(backbone.facts.folder),
            fix="Choose the linear head, or another model.",
        )
    return str(text), number


class AnswerHeads(nn.Module):
    """Task scores from what a language model would write, in float32; the counterpart of ``TaskHeads``.

    "click" and "rank" are logit(yes) - logit(no); "rating" is the mean of the rating words under the softmax over
    them, on the 0-1 scale.

    Args:
        head: from :func:`language_head`; its columns are ``words`` in order.
        words: all answers, in the order of the head's outputs.
        tasks: scores to give.
        answers: (yes, no).
        ratings: word -> rating on the 0-1 scale; needed for the rating task.
    """

    _values: Tensor

    def __init__(
        self,
        head: nn.Module,
        words: Sequence[str],
        tasks: Sequence[Task],
        answers: tuple[str, str],
        ratings: dict[str, float],
    ) -> None:
        super().__init__()
        self.head = head
        self.tasks: tuple[str, ...] = tuple(tasks)
        self._yes, self._no = (words.index(word) for word in answers)
        self._ratings = [words.index(word) for word in ratings]
        self.register_buffer("_values", torch.tensor(list(ratings.values()), dtype=torch.float32), persistent=False)

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        """Outputs of every task, float32 [n], from ``pooled`` [n, hidden_size] of any float dtype."""
        return self.of_logits(self.head(pooled))

    def of_logits(self, logits: Tensor) -> dict[str, Tensor]:
        """The same from the logits of all words, float32 [n, n_words]."""
        click = logits[:, self._yes] - logits[:, self._no]
        found = {}
        for task in self.tasks:
            found[task] = click if task != "rating" else logits[:, self._ratings].softmax(-1) @ self._values
        return found


class LetterHeads(nn.Module):
    """The logit of each letter, float32 [n, n_letters], under the one name "letters"."""

    tasks: tuple[str, ...] = ("rank",)

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        return {"letters": self.head(pooled)}


def letter_heads(backbone: Backbone, letters: Sequence[str], *, filled: bool = True) -> LetterHeads:
    """Heads that read which letter of a list a model would answer with; ``filled`` as :func:`language_head`.

    Raises:
        SpecError: a letter is not a single token of the model.
        ModelError: the model is an encoder, or as :func:`language_head`.
    """
    if backbone.kind != "decoder":
        raise ModelError(
            "lists are answered by models that go on with a text (decoders); this one is an encoder.",
            where=str(backbone.facts.folder),
            fix="Choose a decoder such as smollm2-135m, or a cross-encoder as the ranker.",
        )
    tokens = [answer_token(backbone.tokenizer, letter, where="recommender.ranker.window") for letter in letters]
    if len(set(tokens)) < len(tokens):
        raise SpecError("this model does not tell letters apart.", where="recommender.ranker.model")
    return LetterHeads(language_head(backbone, tokens, filled=filled))


def answer_heads(
    backbone: Backbone,
    tasks: Sequence[Task],
    answers: tuple[str, str],
    rating_scale: tuple[float, float] | None,
    *,
    filled: bool = True,
) -> AnswerHeads:
    """Heads that read answers in words; ``filled=False`` as :func:`language_head`.

    Raises:
        SpecError: a word is not a single token, yes and no are the same one, or the ratings have no digits.
        ModelError: as :func:`language_head`.
    """
    ratings = _rating_words(rating_scale) if "rating" in tasks else {}
    words = list(dict.fromkeys([*answers, *ratings]))
    tokens = [answer_token(backbone.tokenizer, word) for word in words]
    if len(set(tokens)) < len(tokens) or answers[0] == answers[1]:
        raise SpecError(
            f"the answers {', '.join(words)} are not different tokens of this model.",
            where="recommender.label_words",
            fix="Choose other words.",
        )
    return AnswerHeads(language_head(backbone, tokens, filled=filled), words, tasks, answers, ratings)


def _rating_words(scale: tuple[float, float] | None) -> dict[str, float]:
    """The whole numbers of a rating scale as words, each with its place on the 0-1 scale."""
    low, high = scale or (0.0, 0.0)
    numbers = [n for n in range(-1000, 1001) if low <= n <= high]
    if not 2 <= len(numbers) <= _MAX_RATINGS:
        raise SpecError(
            f"ratings from {low:g} to {high:g} cannot be said in 2 to {_MAX_RATINGS} whole numbers.",
            where="recommender.head",
            fix="Choose the linear head, or the click objective.",
        )
    return {str(n): (n - low) / (high - low) for n in numbers}


# ---- the head itself -------------------------------------------------------------------------------------------------


class LanguageHead(nn.Module):
    """Logits of a few tokens, float32 [n, n_tokens], from token states [n, hidden_size]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return self.model(inputs_embeds=states.float().unsqueeze(1)).logits[:, 0]


class _Through(nn.Module):
    """Stands where the layers of a model were: what comes in is what they gave."""

    @property
    def decoder(self) -> _Through:
        # OPT asks its base model's decoder instead of the base model.
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def language_head(backbone: Backbone, token_ids: Sequence[int], *, filled: bool = True) -> LanguageHead:
    """The model's own head over ``token_ids`` alone, frozen, in float32, on the backbone's device.

    The head is built by transformers' own class of the architecture (so that biases, transformations, scalings and
    caps of logits are in it) with the layers taken out; a head that is tied to the word embeddings takes their rows.

    Args:
        filled: False leaves the weights empty, to be loaded from a saved recommender.

    Raises:
        ModelError: the folder holds no such head (encoders are often saved without one).
    """
    config, kind = backbone.model.config, backbone.kind
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING if kind == "decoder" else MODEL_FOR_MASKED_LM_MAPPING
    model_class = classes[type(config)]
    with torch.device("meta"), quiet():
        model = model_class(config)
        old = model.get_output_embeddings()
        small = nn.Linear(old.in_features, len(token_ids), bias=old.bias is not None)
        base = f"{model.base_model_prefix}."
        whole = {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if not name.startswith(base)
        }
        model.set_output_embeddings(small)
        setattr(model, model.base_model_prefix, _Through())
    weights = {}
    with _WeightFiles(backbone).opened() as files:
        for name, shape in whole.items():
            rows = list(token_ids) if shape[0] == old.out_features else None
            if filled:
                weights[name] = files.read(name, rows, dict(model_class._tied_weights_keys or {}), shape)
            else:
                weights[name] = torch.zeros((len(token_ids), *shape[1:]) if rows else shape)
    # Some architectures keep a second name for the bias of the output layer, which is not replaced along with it.
    for name, tensor in weights.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner) if owner else model
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    head = LanguageHead(model).to(backbone.device)
    head.requires_grad_(False)
    return head.eval()


class _WeightFiles:
    """The safetensors of a model folder, read tensor by tensor and row by row."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._files: dict[str, Any] = {}

    @contextmanager
    def opened(self) -> Iterator[_WeightFiles]:
        facts = self._backbone.facts
        with ExitStack() as stack:
            for name in facts.weight_files:
                file = stack.enter_context(safe_open(facts.folder / name, framework="pt"))
                self._files |= dict.fromkeys(file.keys(), file)
            yield self

    def read(self, name: str, rows: list[int] | None, tied: dict[str, str], shape: tuple[int, ...]) -> Tensor:
        """One weight of the head, float32; only ``rows`` of it if given.

        Raises:
            ModelError: it is not there, under no name and not tied, or of another shape.
        """
        table: Any = self._backbone.model.get_input_embeddings().weight
        config = self._backbone.facts.config
        names = [name, *(name.replace(new, old) for old, new in _OLD_NAMES.items())]
        if not name.endswith("weight"):
            # One bias under two names; whether the matrix is tied is for the configuration to say.
            names += [str(tied.get(name)), *(target for target, source in tied.items() if source == name)]
        known = next((n for n in names if n in self._files), None)
        is_tied = name in tied and config.get("tie_word_embeddings", self._backbone.model.config.tie_word_embeddings)
        if known is not None:
            part = self._files[known].get_slice(known)
            if tuple(part.get_shape()) == shape:
                return (part[:] if rows is None else torch.cat([part[row : row + 1] for row in rows])).float()
        elif rows is not None and is_tied and tuple(table.shape) == shape:
            return table.detach()[rows].float().cpu().clone()
        raise ModelError(
            f"the model folder has no language-model head ({name} is missing), so it cannot answer in words.",
            where=str(self._backbone.facts.folder),
            fix="Choose the linear head and train it, or a model that is stored with its language-model head.",
        )
