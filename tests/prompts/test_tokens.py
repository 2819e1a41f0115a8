"""Token counts: remembered words add up to what the tokenizer says of the whole text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from llmrec_core.errors import ModelError
from llmrec_core.prompts.tokens import TokenCounter, WhitespaceCounter

LETTERS = "abcj雨夜é\u0301 .-()[SEP]\t\n\x0b\x1c\u00a0\u2003\u3000\x00"


def word_pieces() -> Tokenizer:
    """A tiny uncased BERT tokenizer that truncates to 8 and pads to 8, as a saved one may."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, *"abcdefghij雨夜.,:()-", *(f"##{c}" for c in "abcdefgh"), "cab", "##bad"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer


def byte_pairs() -> Tokenizer:
    """A byte-level tokenizer, in which a space belongs to the word behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    vocab.update({"Ġa": 256, "ab": 257})
    tokenizer = Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def test_counts_by_hand() -> None:
    counter = TokenCounter(word_pieces())
    # [CLS] cab ##bad . [SEP]; nothing is cut at 8 or padded to 8
    assert counter.count(["cabbad.", "", "a b c d e f g h i j", "雨夜 x"]) == [5, 2, 12, 5]
    assert counter.offsets("CAB (雨)") == [(0, 3), (4, 5), (5, 6), (6, 7)]
    assert counter.special_tokens == ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
    assert counter.exact


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet="abcj雨夜é\u0301 .-()[SEP]\t\n\x0b\x1c\u00a0\u2003\u3000\x00", max_size=40), max_size=4)
)
def test_words_add_up_to_the_whole(texts: list[str]) -> None:
    tokenizer = word_pieces()
    counter = TokenCounter(tokenizer)
    assert counter._by_word
    assert counter.count(texts) == [len(tokenizer.encode(text).ids) for text in texts]
    assert counter.count(texts) == counter.count(texts)


def test_byte_level_tokenizers_read_whole_texts() -> None:
    tokenizer = byte_pairs()
    # "Ġa" and "b" of " ab" are two tokens, while "ab" alone is one: adding up words would be wrong.
    assert TokenCounter(tokenizer).count(["ab ab", "ab"]) == [3, 1]


def test_a_full_cache_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec_core.prompts.tokens._MAX_CACHED_WORDS", 3)
    counter = TokenCounter(word_pieces())
    assert counter.count(["a b", "c d e", "a e"]) == [4, 5, 4]
    assert counter.count(["ab cd", "a"]) == [6, 3]


def test_from_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        TokenCounter.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        TokenCounter.from_folder(tmp_path)
    word_pieces().save(str(tmp_path / "tokenizer.json"))
    assert TokenCounter.from_folder(tmp_path).count(["a " * 20]) == [22]


def test_whitespace_counter_counts_words_marks_and_ideographs() -> None:
    counter = WhitespaceCounter()
    assert counter.count(["Heat, 1995!", "", "雨夜 x"]) == [6, 2, 5]
    assert [("雨夜 ab_c"[a:b]) for a, b in counter.offsets("雨夜 ab_c")] == ["雨", "夜", "ab", "_", "c"]
    assert not counter.exact
