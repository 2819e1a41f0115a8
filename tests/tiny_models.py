"""Tiny random language models in folders that look like real ones: toy doubles for every test that needs a model.

Weights are drawn from the seed, the tokenizer is a word-level one over a small fixed vocabulary (English words,
digits, punctuation, single Chinese characters), so a folder takes milliseconds to write and tens of kilobytes.
Import it as ``from tiny_models import write_tiny_bert``.
"""

from __future__ import annotations

import json
from pathlib import Path

#: Position decides the id: [PAD] is 0, [UNK] 1, [CLS] 2, [SEP] 3.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ENGLISH = (
    "a an and the this that of in on at to for with from by is was are will would do does did not no yes or but if "
    "user item history candidate profile context question answer list title category genre description rating rated "
    "time year age gender job likes liked like watched bought read played seen recent older none unknown "
    "movie film book song game show story scary horror comedy drama action romance thriller children war music night "
    "red blue green dark light old new good bad great star wars toy tax law love life death house city man woman "
    "next which what how why who much want recommend prefer enjoy interested predict score rank best "
    "zero one two three four five six seven eight nine ten"
)
WORDS = _ENGLISH.split()
PUNCTUATION = tuple(".,:;!?-()[]/|'\"+*#&%=_")
CHINESE = tuple("的了是我你他她用户喜欢电影书歌游戏推荐历史候选项目评分标题类别好坏看过买红蓝黑白大小新老爱生活死")
VOCABULARY = tuple(dict.fromkeys([*SPECIAL, *WORDS, *(str(d) for d in range(10)), *PUNCTUATION, *CHINESE]))


def write_tiny_bert(folder: Path, *, seed: int = 0, n_layers: int = 2, hidden_size: int = 32) -> Path:
    """A random BERT encoder (2 layers, 32 wide, 512 positions) with [CLS] ... [SEP] around each text."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    return _write(folder, BertModel, config, seed, special=True)


def write_tiny_llama(folder: Path, *, seed: int = 0, n_layers: int = 2, hidden_size: int = 32) -> Path:
    """A random Llama decoder (2 layers, 32 wide, grouped queries, tied embeddings); no tokens are added to a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=None,
    )
    return _write(folder, LlamaForCausalLM, config, seed, special=False)


def write_lettered_llama(folder: Path, *, seed: int = 0) -> Path:
    """:func:`write_tiny_llama` that knows the letters of a list: some rare words of its vocabulary are letters here."""
    write_tiny_llama(folder, seed=seed)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    for letter, word in zip("bcdefgh", ("ten", "nine", "eight", "seven", "six", "five", "four"), strict=True):
        words[letter] = words.pop(word)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return folder


def write_tiny_gpt2(folder: Path, *, seed: int = 0, n_layers: int = 2, hidden_size: int = 32) -> Path:
    """A random GPT-2 decoder, whose linear layers are ``Conv1D``; no tokens are added to a text."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_embd=hidden_size,
        n_layer=n_layers,
        n_head=4,
        n_positions=512,
        bos_token_id=2,
        eos_token_id=3,
    )
    return _write(folder, GPT2LMHeadModel, config, seed, special=False)


#: One model of each kind that differs in how it attends, where positions stand or how matrices are kept.
WRITERS = {"bert": write_tiny_bert, "llama": write_tiny_llama, "gpt2": write_tiny_gpt2}


def write_tokenizer(folder: Path, *, special: bool = True) -> None:
    """``tokenizer.json`` and ``tokenizer_config.json``; ``special`` puts [CLS] and [SEP] around each text."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    # Chinese characters and digits stand alone, as in BERT's own tokenizer, so that spans and counts are lifelike.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"[\u4e00-\u9fff]"), "isolated"),
        ]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if special:
        named["pad_token"] = "[PAD]"
    else:
        # Like many decoders, this one has no padding token of its own.
        named = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _write(folder: Path, model_class: type, config: object, seed: int, *, special: bool) -> Path:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model_class(config).save_pretrained(folder)  # type: ignore[attr-defined]
    write_tokenizer(folder, special=special)
    return folder
