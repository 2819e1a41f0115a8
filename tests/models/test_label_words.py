"""Answers in words: the tokens of words, and a language model's head cut down to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models.test_models_loading import write_tiny
from tiny_models import VOCABULARY, write_tiny_bert, write_tiny_llama
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from llmrec_core.errors import ModelError, SpecError
from llmrec_core.models.label_words import AnswerHeads, answer_heads, answer_token, language_head, mask_token
from llmrec_core.models.loading import load_backbone

TOKENS = [20, 31, 40]
#: Architectures whose heads differ: what stands before the matrix, its biases, scalings and caps, its stored names.
KINDS_OF_HEADS = (
    "albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "gemma2", "gpt2",
    "gpt_neox", "granite", "llama", "opt", "phi",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("model_type", KINDS_OF_HEADS)
def test_it_says_what_the_whole_model_says(model_type: str, tmp_path: Path) -> None:
    """Tied or not, with biases, transformations, scalings and caps: the same logits from a few rows."""
    backbone = load_backbone(write_tiny(model_type, tmp_path / "model"), trainable=False)
    make = AutoModelForCausalLM if backbone.kind == "decoder" else AutoModelForMaskedLM
    whole = make.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    ids = torch.arange(6, 16)[None]
    mask = torch.ones_like(ids)
    head = language_head(backbone, TOKENS)
    with torch.no_grad():
        states = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        wanted = whole(input_ids=ids, attention_mask=mask).logits[0][:, TOKENS]
        torch.testing.assert_close(head(states), wanted, atol=1e-6, rtol=1e-5)
    assert all(len(VOCABULARY) not in parameter.shape for parameter in head.parameters()), "only rows that are needed"
    assert not any(parameter.requires_grad for parameter in head.parameters())
    empty = language_head(backbone, TOKENS, filled=False)
    empty.load_state_dict(head.state_dict())
    assert torch.equal(empty(states), head(states))


def test_an_encoder_without_its_head_is_refused(tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_bert(tmp_path / "bert"))
    with pytest.raises(ModelError, match="no language-model head"):
        language_head(backbone, TOKENS)


def test_an_untied_head_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        language_head(load_backbone(folder), TOKENS)


def test_words_are_single_tokens_behind_a_colon(tmp_path: Path) -> None:
    tokenizer = load_backbone(write_tiny_llama(tmp_path / "llama")).tokenizer
    assert VOCABULARY[answer_token(tokenizer, " Yes ")] == "yes"
    assert VOCABULARY[answer_token(tokenizer, "好")] == "好"
    for wrong in ("very good", "42", "perhaps", "喜欢"):
        with pytest.raises(SpecError, match="single token"):
            answer_token(tokenizer, wrong)
    with pytest.raises(SpecError, match="empty"):
        answer_token(tokenizer, " ")


def test_byte_level_words_begin_with_their_space() -> None:
    """Decoders know "Yes" and " Yes" as two tokens; behind a colon comes the one with the space."""
    letters = {letter: i for i, letter in enumerate(["Ġ", "Y", "e", "s", "A", "n", "w", "r", ":", "Ye", "Yes", "ĠYes"])}
    tokenizer = Tokenizer(BPE(letters, [("Y", "e"), ("Ye", "s"), ("Ġ", "Yes")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert answer_token(tokenizer, "Yes") == letters["ĠYes"]
    with pytest.raises(SpecError, match="single token"):
        answer_token(tokenizer, "was")


class _Fixed(nn.Module):
    def forward(self, pooled: Tensor) -> Tensor:
        return pooled


def test_answers_by_hand() -> None:
    words = ["Yes", "No", "1", "3", "5"]
    heads = AnswerHeads(_Fixed(), words, ("click", "rank", "rating"), ("Yes", "No"), {"1": 0.0, "3": 0.5, "5": 1.0})
    found = heads(torch.tensor([[2.0, 0.5, 0.0, 0.0, 0.0], [0.0, 1.0, -99.0, -99.0, 99.0]]))
    assert found["click"].tolist() == found["rank"].tolist() == [1.5, -1.0]
    assert found["rating"].tolist() == pytest.approx([0.5, 1.0])


def test_ratings_are_the_whole_numbers_of_their_scale(tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_llama(tmp_path / "llama"), trainable=False)
    heads = answer_heads(backbone, ("rating",), ("Yes", "No"), (0.5, 4.5))
    assert heads._values.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])
    for scale in (None, (0.0, 100.0), (1.0, 1.5)):
        with pytest.raises(SpecError, match="whole numbers"):
            answer_heads(backbone, ("rating",), ("Yes", "No"), scale)
    with pytest.raises(SpecError, match="not different"):
        answer_heads(backbone, ("click",), ("yes", "Yes"), None)


def test_the_mask_token_of_an_encoder(tmp_path: Path) -> None:
    assert mask_token(load_backbone(write_tiny_bert(tmp_path / "bert"))) == ("[MASK]", 4)
    with pytest.raises(ModelError, match="mask"):
        mask_token(load_backbone(write_tiny_llama(tmp_path / "llama")))
