"""Token counts without a model: the ``tokenizers`` package over a model folder's ``tokenizer.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from llmrec_core.errors import ModelError

#: A cache of word lengths starts afresh beyond this many words.
_MAX_CACHED_WORDS = 300_000


class Counter(Protocol):
    """Counts tokens as a model would see them."""

    #: False when the counts stand in for a tokenizer that is not there.
    exact: bool
    #: Whether the count of a text is the sum of its parts' counts where it is cut before a lone space (special tokens
    #: counted once); see :func:`space_before`.
    adds_up: bool
    #: Strings that the tokenizer reads as control tokens ("[SEP]"); user data must not hold them whole.
    special_tokens: tuple[str, ...]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) characters of each token but the special ones."""


class TokenCounter:
    """Counts with a ``tokenizer.json``; truncation and padding that it may ask for are switched off.

    WordPiece after BERT's splitter treats every word by itself, so there the counts of words are remembered and added
    up, which is many times faster; every other kind of tokenizer reads the whole text.
    """

    exact = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self.special_tokens: tuple[str, ...] = tuple(sorted(token.content for token in added if token.special))
        self._n_special = tokenizer.num_special_tokens_to_add(False)
        settings = json.loads(tokenizer.to_str())
        self._by_word = _splits_at_spaces(settings)
        self.adds_up = reads_by_parts(settings)
        self._known: dict[str, int] = {"": 0}

    @classmethod
    def from_folder(cls, folder: str | Path) -> TokenCounter:
        """The counter of the model in ``folder``.

        Raises:
            ModelError: there is no ``tokenizer.json``, or it cannot be read.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                "there is no tokenizer.json in the model folder.",
                where=str(folder),
                fix="Fetch the model again, or save its fast tokenizer there.",
            )
        try:
            return cls(Tokenizer.from_file(str(path)))
        # tokenizers raises a bare Exception for every fault in the file.
        except Exception as error:
            raise ModelError(
                f"tokenizer.json cannot be read: {error}.", where=str(path), fix="Fetch the model again."
            ) from None

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""
        if not self._by_word:
            return [len(encoded) for encoded in self._tokenizer.encode_batch_fast(list(texts))]
        known = self._known
        words = [text.split(" ") for text in texts]
        unknown = {word for row in words for word in row if word not in known}
        if unknown:
            if len(known) + len(unknown) > _MAX_CACHED_WORDS:
                known = self._known = {"": 0}
                unknown = {word for row in words for word in row if word}
            ordered = list(unknown)
            encoded = self._tokenizer.encode_batch_fast(ordered, add_special_tokens=False)
            known.update(zip(ordered, map(len, encoded), strict=True))
        return [sum([known[word] for word in row]) + self._n_special for row in words]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) characters of each token but the special ones."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)


def _splits_at_spaces(settings: dict[str, Any]) -> bool:
    """Whether the count of a text is the sum over its space-separated words, as it is for BERT and its kin."""

    def kind(part: str) -> str | None:
        return (settings.get(part) or {}).get("type")

    added = settings.get("added_tokens") or []
    return (
        kind("model") == "WordPiece"
        and kind("pre_tokenizer") == "BertPreTokenizer"
        and kind("normalizer") in {None, "BertNormalizer", "Lowercase"}
        and not any(" " in token["content"] for token in added)
    )


def space_before(text: str, place: int) -> bool:
    """Whether ``text`` can be cut before the space in front of ``place``: behind a letter or mark, not a blank."""
    return place > 1 and text[place - 1] == " " and not text[place - 2].isspace()


def reads_by_parts(settings: dict[str, Any]) -> bool:
    """Whether a tokenizer reads a text as its parts one after another where it is cut as :func:`space_before` says.

    True for those of which it is known: words of BERT and its kin, which end at blanks, and byte-level pairs whose
    splitter puts a blank before a word, never behind one.

    Args:
        settings: of a ``tokenizer.json``.
    """
    model, normalizer, splitter = (settings.get(name) or {} for name in ("model", "normalizer", "pre_tokenizer"))
    added = settings.get("added_tokens") or []
    if any(token["rstrip"] or any(map(str.isspace, token["content"])) for token in added):
        return False
    steps = splitter.get("pretokenizers", []) if splitter.get("type") == "Sequence" else [splitter]
    kinds = [step.get("type") for step in steps]
    if model.get("type") in {"WordPiece", "WordLevel"}:
        # What is split at blanks first stays apart, whatever further steps do to each word.
        at_blanks = kinds[:1] and kinds[0] in {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
        return bool(at_blanks) and normalizer.get("type") in {None, "BertNormalizer", "Lowercase"}
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and not normalizer
        and kinds[-1:] == ["ByteLevel"]
        and set(kinds[:-1]) <= {"Digits"}
        and steps[-1].get("use_regex") is True
    )


class WhitespaceCounter:
    """Stands in while no model is on disk: a token for every word, mark and ideograph, and two special ones.

    Subword tokenizers give more tokens than this; screens say so where they show its counts.
    """

    exact = False
    adds_up = True
    special_tokens: tuple[str, ...] = ()
    _TOKEN = re.compile(
        r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_\u3040-\u9fff\uac00-\ud7af]+|[^\s]"
    )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""
        return [sum(1 for _ in self._TOKEN.finditer(text)) + 2 for text in texts]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) characters of each token but the special ones."""
        return [found.span() for found in self._TOKEN.finditer(text)]
