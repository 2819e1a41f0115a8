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
        self._by_word = _splits_at_spaces(json.loads(tokenizer.to_str()))
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


class WhitespaceCounter:
    """Stands in while no model is on disk: a token for every word, mark and ideograph, and two special ones.

    Subword tokenizers give more tokens than this; screens say so where they show its counts.
    """

    exact = False
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
