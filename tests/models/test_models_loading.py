"""Backbones load from checked files alone, read texts alike however they are batched, and survive saving."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, WRITERS, write_tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from llmrec_core.errors import InputError, ModelError, SpecError
from llmrec_core.models.checking import DECODER_TYPES, ENCODER_TYPES
from llmrec_core.models.loading import Backbone, load_backbone, pool, save_backbone
from llmrec_core.models.tuning import apply_tuning, merge_adapters, parameter_counts
from llmrec_core.specs import TuningSpec

TEXTS = ["A scary movie", "the user liked 电影 and watched Star Wars (1977), rating 4!", "no"]


def vectors(backbone: Backbone, texts: list[str]) -> torch.Tensor:
    backbone.model.eval()
    with torch.no_grad():
        return backbone.pooled(**backbone.pad(backbone.encode(texts)), how=backbone.default_pooling)


@pytest.mark.parametrize("name", WRITERS)
def test_facts_of_a_backbone(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(folders[name])
    assert backbone.kind == ("encoder" if name == "bert" else "decoder")
    assert (backbone.hidden_size, backbone.n_layers, backbone.max_tokens) == (32, 2, 512)
    assert backbone.attention == "eager"  # on the CPU
    assert backbone.model.config._attn_implementation == "eager"
    assert getattr(backbone.model, "pooler", None) is None
    counts = parameter_counts(backbone.model)
    assert counts.trainable == counts.total > 0
    assert backbone.pad_id == (0 if name == "bert" else 3)  # decoders without one are padded with end-of-text


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(folders: dict[str, Path], name: str, attention: str) -> None:
    backbone = load_backbone(folders[name], attention=attention)
    together = vectors(backbone, TEXTS)
    alone = torch.cat([vectors(backbone, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    # A text that is seen makes a difference, or the line above would prove nothing.
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_encoding_and_padding_by_hand(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["bert"])
    word = {token: number for number, token in enumerate(VOCABULARY)}
    rows = backbone.encode(["A scary movie", "电影"])
    assert rows == [[2, word["a"], word["scary"], word["movie"], 3], [2, word["电"], word["影"], 3]]
    batch = backbone.pad(rows)
    assert batch["input_ids"].tolist() == [rows[0], [*rows[1], 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert backbone.pad(rows, multiple_of=8)["input_ids"].shape == (2, 8)
    ids, offsets = backbone.encode_with_offsets("A scary movie")
    assert ids == rows[0]
    assert offsets.tolist() == [[0, 0], [0, 1], [2, 7], [8, 13], [0, 0]]


def test_too_long_and_empty_texts_are_refused(folders: dict[str, Path]) -> None:
    assert len(load_backbone(folders["bert"]).encode(["movie " * 510])[0]) == 512
    with pytest.raises(InputError, match="513 tokens"):
        load_backbone(folders["bert"]).encode(["movie", "movie " * 511])
    with pytest.raises(InputError, match="0 tokens"):
        load_backbone(folders["llama"]).encode([""])


def test_truncation_stored_in_the_tokenizer_is_off(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "model"))
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    assert [len(row) for row in load_backbone(folder).encode(["no", "a scary movie of the night"])] == [3, 8]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), how=st.sampled_from(["mean", "cls", "last"]))
def test_pooling_equals_the_plain_loop(lengths: list[int], how: str) -> None:
    hidden = torch.randn(len(lengths), 6, 3, generator=torch.Generator().manual_seed(sum(lengths)))
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    expected = []
    for row, length in zip(hidden.numpy(), lengths, strict=True):
        expected.append({"mean": row[:length].mean(0), "cls": row[0], "last": row[length - 1]}[how])
    np.testing.assert_allclose(pool(hidden, mask, how).numpy(), np.stack(expected), atol=1e-6)  # type: ignore[arg-type]


def test_unknown_pooling_and_attention(folders: dict[str, Path]) -> None:
    with pytest.raises(SpecError):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "max")  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        load_backbone(folders["bert"], attention="evil/kernel")  # type: ignore[arg-type]


def test_dropout_is_set_everywhere(folders: dict[str, Path]) -> None:
    for name in ("bert", "gpt2"):
        layers = [
            m for m in load_backbone(folders[name], dropout=0.25).model.modules() if type(m).__name__ == "Dropout"
        ]
        assert layers
        assert {m.p for m in layers} == {0.25}
    backbone = load_backbone(folders["bert"], dropout=0.0)
    backbone.model.train()
    batch = backbone.pad(backbone.encode(TEXTS))
    assert torch.equal(backbone.pooled(**batch, how="mean"), backbone.pooled(**batch, how="mean"))


def test_frozen_loading(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["bert"], dropout=0.5, trainable=False)
    assert parameter_counts(backbone.model).trainable == 0
    assert not backbone.model.training


def test_bf16_weights(folders: dict[str, Path]) -> None:
    exact, rounded = load_backbone(folders["bert"]), load_backbone(folders["bert"], dtype=torch.bfloat16)
    assert {p.dtype for p in rounded.model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(vectors(exact, TEXTS), vectors(rounded, TEXTS).float(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", WRITERS)
def test_saved_backbone_gives_equal_outputs(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    backbone = load_backbone(folders[name])
    with torch.no_grad():
        next(backbone.model.parameters()).add_(0.1)
    save_backbone(backbone, tmp_path)
    again = load_backbone(tmp_path)
    assert torch.equal(vectors(backbone, TEXTS), vectors(again, TEXTS))
    assert again.pad_id == backbone.pad_id


def test_names_of_old_checkpoints_are_understood(folders: dict[str, Path], tmp_path: Path) -> None:
    """The first BERT files prefix names with ``bert.`` and call the norm's weights gamma and beta."""
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "model"))
    old = {}
    for name, value in load_file(folder / "model.safetensors").items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{name}"] = value + 0.25 if "gamma" in name else value
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_backbone(folder).model.embeddings.LayerNorm.weight, torch.full((32,), 1.25))


# --- hostile and damaged folders -------------------------------------------------------------------------------------


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["bert"], tmp_path / "model"))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        import os

        return os.mkdir, (str(self.path),)


def test_pickles_beside_the_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("pytorch_model.bin", "rng_state.pth", "optimizer.pt", "training_args.bin", "vocab.pkl", "x.joblib"):
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    vectors(load_backbone(folder), TEXTS)
    assert not canary.exists()


def test_code_in_the_folder_never_runs(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "modeling_evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="auto_map"):
        load_backbone(folder)
    assert not canary.exists()


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    taken = weights.pop("encoder.layer.1.output.dense.weight")
    weights["unrelated"] = taken.clone()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 weights are missing.*layer\.1\.output\.dense\.weight"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 500}, "asks for"),
        ({"hidden_size": 64_000}, "asks for"),
        ({"num_attention_heads": 7}, "cannot be built"),
        ({"intermediate_size": 16}, "cannot be built"),
        ({"hidden_act": "evil"}, "cannot be built"),
        ({"vocab_size": 10}, "tokenizer knows ids beyond"),
    ],
)
def test_config_of_another_model(folder: Path, change: dict[str, object], said: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=said):
        load_backbone(folder)


@pytest.mark.parametrize("text", ["{}", '{"model": {"type": "Evil"}}', "{" * 50])
def test_damaged_tokenizer(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="tokenizer"):
        load_backbone(folder)


# --- every architecture that is offered ------------------------------------------------------------------------------

_GROUPED = DECODER_TYPES - {"gpt2", "gpt_neox", "opt", "phi"}


def write_tiny(model_type: str, folder: Path) -> Path:
    """A random model of any offered architecture, stored with its language-model head."""
    values: dict[str, object] = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    special: dict[str, dict[str, object]] = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
        "albert": {"embedding_size": 16},
        "electra": {"embedding_size": 16},
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "modernbert": {"cls_token_id": 2, "sep_token_id": 3},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    }
    if model_type in ("gpt2", "distilbert"):
        values = {"vocab_size": len(VOCABULARY)}
    if model_type in _GROUPED:
        values["num_key_value_heads"] = 2
    if model_type in ("gemma", "gemma2", "qwen3"):
        values["head_dim"] = 8
    config = AutoConfig.for_model(model_type, **values, **special.get(model_type, {}))
    make = AutoModelForCausalLM if model_type in DECODER_TYPES else AutoModelForMaskedLM
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, special=model_type in ENCODER_TYPES)
    return folder


# Older releases of transformers script parts of DeBERTa; newer releases of torch tell them not to.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("model_type", sorted(ENCODER_TYPES | DECODER_TYPES))
def test_every_offered_architecture_loads_tunes_and_saves(model_type: str, tmp_path: Path) -> None:
    assert model_type in CONFIG_MAPPING
    folder = write_tiny(model_type, tmp_path / "model")
    backbone = load_backbone(folder)
    assert backbone.kind == ("encoder" if model_type in ENCODER_TYPES else "decoder")
    plain = vectors(backbone, TEXTS)
    torch.testing.assert_close(plain[:1], vectors(backbone, TEXTS[:1]), atol=1e-5, rtol=1e-5)

    apply_tuning(backbone.model, TuningSpec(method="lora", lora_rank=2))
    torch.testing.assert_close(vectors(backbone, TEXTS), plain, atol=1e-6, rtol=1e-5)  # adapters start at no change
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    tuned = vectors(backbone, TEXTS)
    assert (tuned - plain).abs().max() > 1e-3
    merge_adapters(backbone.model)
    torch.testing.assert_close(vectors(backbone, TEXTS), tuned, atol=1e-5, rtol=1e-5)
    (tmp_path / "saved").mkdir()
    save_backbone(backbone, tmp_path / "saved")
    assert torch.equal(vectors(load_backbone(tmp_path / "saved"), TEXTS), vectors(backbone, TEXTS))

    backbone = load_backbone(folder)
    apply_tuning(backbone.model, TuningSpec(method="full"))
    backbone.pooled(**backbone.pad(backbone.encode(TEXTS)), how="mean").square().sum().backward()
    assert [n for n, p in backbone.model.named_parameters() if p.requires_grad and p.grad is None] == []
