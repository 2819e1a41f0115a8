"""How much of a card training and scoring use: tokens a second, share of its measured matmul peak, memory.

    python -m benchmarks.gpu [--sizes all|smallest|NAME ...] [--workspace DIR] [--out FILE]

For a list of models (see ``SIZES``): full tuning, LoRA, and scoring of many candidates after each history, on the very
path of ``llmrec train``: ``training.trainer.train`` on a ``BatchPlan``, and ``PromptNetwork.predict``, in the precision
that a run takes on the device. MiniLM and SmolLM2 are the real ones where the workspace has them; all others are random
weights of the real shapes, which cost as much. Prompts are random words: histories of 160 to 224 tokens with eight
candidates of 32 to 48 in training, and four of 384 to 512 tokens with 200 candidates each in scoring.

Only matrix products that are needed are counted, a multiplication and an addition being two operations: of the weights
inside the layers, forwards, for gradients of what stands below, and for their own gradients where they are trained; and
of attention between pairs of tokens that may read each other. Embeddings, padding, masked pairs, and what gradient
checkpointing computes twice are not. A figure is the median of five windows of whole training steps, or of scoring.

With a CUDA device the result is written to ``benchmarks/results/gpu.json``; without one the script runs on the CPU
(``--sizes smallest`` takes seconds) and writes only where ``--out`` says.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from llmrec_core.contracts import FitContext, IntArray, Query
from llmrec_core.errors import RunFailedError
from llmrec_core.models.catalogue import model_folder
from llmrec_core.models.device import MatmulPeaks, matmul_peaks, resolve_device
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import load_backbone
from llmrec_core.models.tuning import apply_tuning, layer_stack, parameter_counts
from llmrec_core.presets import preset_spec
from llmrec_core.recommenders._language_models import precision_of
from llmrec_core.specs import RunSpec, TuningSpec
from llmrec_core.training.batches import BatchPlan
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import Packed, Ragged, TokenisedPrompts, pack
from llmrec_core.training.samples import SampleLists
from llmrec_core.training.trainer import train
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "gpu.json"
WINDOWS, N_TAILS, N_WORDS = 5, 8, 1000
#: Share of the peak that is wanted, by size.
TARGETS = {"qwen2.5-1.5b": 0.4}
Work = Literal["full", "lora", "scoring"]


@dataclass(frozen=True)
class Size:
    """A model's shape, as its config.json has it.

    Attributes:
        rows: histories in a training step on a card (about 500 tokens each with their candidates).
        real: the catalogue's name of the model with these shapes; None: only random weights.
    """

    title: str
    rows: int
    config: dict[str, Any]
    real: str | None = None


def _decoder(kind: str, **sizes: Any) -> dict[str, Any]:
    shared = {"model_type": kind, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    return shared | {"initializer_range": 0.02} | sizes


#: Name -> model, smallest first.
SIZES: dict[str, Size] = {
    "tiny": Size(
        "tiny Llama", 2,
        _decoder(
            "llama", vocab_size=N_WORDS, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
        ),
    ),
    "minilm": Size(
        "MiniLM (6 layers)", 128,
        {
            "model_type": "bert", "vocab_size": 30_522, "hidden_size": 384, "intermediate_size": 1536,
            "num_hidden_layers": 6, "num_attention_heads": 12, "max_position_embeddings": 512, "hidden_act": "gelu",
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        },
        real="minilm",
    ),
    "smollm2-135m": Size(
        "SmolLM2-135M", 48,
        _decoder(
            "llama", vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192,
        ),
        real="smollm2-135m",
    ),
    "qwen3-0.6b": Size(
        "0.6 B (shape of Qwen3-0.6B)", 24,
        _decoder(
            "qwen3", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960,
        ),
    ),
    "qwen2.5-1.5b": Size(
        "1.5 B (shape of Qwen2.5-1.5B)", 16,
        _decoder(
            "qwen2", vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
            num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32_768,
        ),
    ),
}  # fmt: skip


# ---- models and prompts ----------------------------------------------------------------------------------------------


def write_random_model(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """A folder with config.json, random bf16 weights under the names of transformers, and a tokenizer of few words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    settings = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        skeleton = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **settings))
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, parameter in skeleton.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
        else:
            drawn = torch.full(parameter.shape, float(name.endswith("weight")), dtype=torch.bfloat16)
        weights[name] = drawn
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = models.WordLevel({f"w{number}": number for number in range(N_WORDS)}, unk_token="w0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_prompts(n_heads: int, n_tails: int, head: tuple[int, int], tail: tuple[int, int]) -> TokenisedPrompts:
    """``n_heads`` histories with ``n_tails`` candidates each, lengths drawn between two ends (both included)."""
    rng = np.random.default_rng(0)

    def rows(n: int, ends: tuple[int, int]) -> Ragged:
        lengths = rng.integers(ends[0], ends[1] + 1, n)
        flat = rng.integers(1, N_WORDS, int(lengths.sum())).astype(np.int32)
        return Ragged(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    n_prompts = n_heads * n_tails
    return TokenisedPrompts(
        rows(n_heads, head), rows(n_prompts, tail), np.repeat(np.arange(n_heads), n_tails), np.arange(n_prompts)
    )


def click_lists(tokens: TokenisedPrompts) -> SampleLists:
    """Lists of one history each, with drawn clicks."""
    n_lists = len(tokens.heads)
    queries = [Query(user_id=str(number), history=()) for number in range(n_lists)]
    labels = np.random.default_rng(1).integers(0, 2, len(tokens)).astype(np.float32)
    numbers = np.arange(n_lists, dtype=np.int64)
    return SampleLists(queries, numbers, tokens.head_of, np.zeros(len(tokens), np.int64), {"click": labels})


# ---- operations ------------------------------------------------------------------------------------------------------


def read_pairs(packed: Packed, *, causal: bool) -> int:
    """Pairs of tokens, one of which may read the other (itself included), in all rows; see ``packing.tree_mask``."""

    def inside(n: IntArray) -> int:
        return int((n * (n + 1) // 2 if causal else n * n).sum())

    total = 0
    for row in packed.segment.numpy():
        sizes = np.bincount(row[row >= 0])
        total += inside(sizes) + int(sizes[0] * sizes[1:].sum())
    return total


def products_per_token(network: PromptNetwork, packed: Packed, *, training: bool) -> int:
    """Multiplications a token with the weights of the layers, in one training step or (not ``training``) reading.

    Whether gradients are wanted below a matrix is not guessed but looked at, in one forward pass of ``packed``.
    """
    counts: list[int] = []

    def count(module: Any, args: tuple[Tensor, ...]) -> None:
        below = training and args[0].requires_grad
        adapted = isinstance(module, BaseTunerLayer)
        base = module.get_base_layer() if adapted else module
        passes = 1 + below + (training and base.weight.requires_grad)
        counts.append(base.weight.numel() * passes)
        if adapted:
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            counts.append(down.numel() * (1 + training + below) + up.numel() * (1 + 2 * training))

    layers = layer_stack(network.encoder)
    inner = {
        id(part) for m in layers.modules() if isinstance(m, BaseTunerLayer) for part in m.modules() if part is not m
    }
    outer = [m for m in layers.modules() if isinstance(m, nn.Linear | BaseTunerLayer) and id(m) not in inner]
    hooks = [module.register_forward_pre_hook(count) for module in outer]
    try:
        with torch.set_grad_enabled(training):
            network(packed)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def operations(network: PromptNetwork, per_token: int, packed: Packed, *, training: bool) -> float:
    """Floating point operations that the batch needs; ``per_token``: from :func:`products_per_token`."""
    config = network.encoder.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    # Scores and sums of values; backwards the gradients of both factors of both.
    attention = (
        2 * width * config.num_hidden_layers * read_pairs(packed, causal=network.causal) * (3 if training else 1)
    )
    return 2.0 * (per_token * packed.n_tokens + attention)


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Windows:
    """Ends of windows of ``per_window`` steps, after ``warm`` steps; called after each step, as a fit asks to stop."""

    device: torch.device
    warm: int
    per_window: int
    marks: list[float] = field(default_factory=list)
    step: int = 0

    def __call__(self) -> None:
        self.step += 1
        if self.step >= self.warm and (self.step - self.warm) % self.per_window == 0:
            wait(self.device)
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return np.diff(self.marks).tolist()


def wait(device: torch.device) -> None:
    """Until all that was queued on a card is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def clean_memory(device: torch.device) -> Iterator[None]:
    """Peak memory is that of what runs inside alone."""
    if device.type == "cuda":
        # The network of the row before hangs in cycles of its trainer.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield


def peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def make_network(folder: Path, run: RunSpec, method: str, device: torch.device) -> PromptNetwork:
    """As a run of the cross-encoder has it; "none" is frozen."""
    dtype, autocast, _ = precision_of(run, device)
    backbone = load_backbone(folder, device=device, dtype=dtype, trainable=method != "none")
    apply_tuning(backbone.model, TuningSpec.model_validate({"method": method}))
    heads = TaskHeads(backbone.hidden_size, ("click",))
    return PromptNetwork(backbone, heads, pooling=backbone.default_pooling, shared=True, autocast=autocast)


def figures(
    seconds: Sequence[float], tokens: Sequence[int], prompts: Sequence[int], work: Sequence[float]
) -> dict[str, Any]:
    """Medians over windows; the four are lists of one value a window."""

    def median(values: Sequence[float]) -> float:
        return statistics.median(value / s for value, s in zip(values, seconds, strict=True))

    return {
        "tokens_per_s": round(median(tokens), 1),
        "prompts_per_s": round(median(prompts), 2),
        "gflops": round(median(work) / 1e9, 3),
        "seconds_of_each_window": [round(s, 4) for s in seconds],
    }


def training_speed(
    folder: Path, method: Work, rows: int, steps: int, device: torch.device, run: RunSpec
) -> dict[str, Any]:
    """Windows of ``steps`` steps of ``rows`` histories, inside one call of ``train``."""
    network = make_network(folder, run, method, device)
    warm = 2
    tokens = random_prompts(rows * (warm + WINDOWS * steps), N_TAILS, (160, 224), (32, 48))
    spec = run.training.model_copy(
        update={"batch_size": rows * N_TAILS, "epochs": 1.0, "max_samples": None, "learning_rate": 1e-5}
    )
    plan = BatchPlan(click_lists(tokens), tokens, spec, 0, network.backbone.pad_id)
    # One history is enough to see where gradients go, and takes no memory to speak of.
    per_token = products_per_token(network, plan.collate(plan.schedule[0][:1]).packed, training=True)
    windows, notes = Windows(device, warm, steps), []

    def hear(event: str, **values: Any) -> None:
        if event == "log" and values["level"] == "warning":
            notes.append(values["message"])

    train(network, plan, None, {"click": 1.0}, spec, FitContext(device=str(device), emit=hear, should_stop=windows))
    batches = [[plan[i] for i in range(at, at + steps)] for at in range(warm, warm + WINDOWS * steps, steps)]
    work = [sum(operations(network, per_token, b.packed, training=True) for b in window) for window in batches]
    counts = parameter_counts(network)
    return figures(
        windows.seconds(),
        [sum(b.n_tokens for b in window) for window in batches],
        [sum(b.n_prompts for b in window) for window in batches],
        work,
    ) | {
        "tokens_a_step": round(statistics.mean(b.n_tokens for window in batches for b in window)),
        "trained_parameters": counts.trainable,
        "attention": network.backbone.attention,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "notes": notes,
    }


@torch.inference_mode()
def separate_scores(network: PromptNetwork, tokens: TokenisedPrompts, chosen: IntArray) -> Tensor:
    """Each prompt read by itself, under the mask of training."""
    alone = [network(pack(tokens, np.array([i]), [np.zeros(1, np.int64)], network.backbone.pad_id)) for i in chosen]
    return torch.cat([outputs["click"] for outputs in alone]).cpu()


def scoring_speed(
    folder: Path, n_users: int, n_candidates: int, calls: int, device: torch.device, run: RunSpec
) -> dict[str, Any]:
    """Windows of ``calls`` calls that score the candidates of all users."""
    network = make_network(folder, run, "none", device).eval()
    # Large enough for scores to differ.
    head = network.heads.get_parameter("heads.click.weight")
    nn.init.normal_(head, generator=torch.Generator(device).manual_seed(0))
    tokens = random_prompts(n_users, n_candidates, (384, 512), (24, 40))
    everything = np.arange(len(tokens), dtype=np.int64)
    packed = pack(tokens, everything, np.split(everything, n_users), network.backbone.pad_id)
    sample = np.linspace(0, len(tokens) - 1, 8).astype(np.int64)
    shared = torch.from_numpy(network.predict(tokens, ("click",))["click"])
    alone = separate_scores(network, tokens, sample)
    # With the longest history alone: how many tokens stand in a row changes nothing a token costs.
    per_token = products_per_token(network, pack(tokens, sample[:1], [np.zeros(1, np.int64)], 0), training=False)
    seconds = []
    for _ in range(WINDOWS):
        wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            network.predict(tokens, ("click",))
        wait(device)
        seconds.append(time.perf_counter() - started)
    work = calls * operations(network, per_token, packed, training=False)
    return figures(seconds, [calls * packed.n_tokens] * WINDOWS, [calls * len(tokens)] * WINDOWS, [work] * WINDOWS) | {
        "users": n_users,
        "candidates": n_candidates,
        "largest_difference_to_separate": float((shared[sample] - alone).abs().max()),
        "spread_of_scores": float(shared.std()),
        "attention": "blocks",
        "notes": [],
    }


def in_memory(measure: Callable[[bool], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """``measure(checkpointing)``, without gradient checkpointing where the memory is enough, else with it."""
    found: dict[str, Any] = {}
    reason = ""
    for checkpointing in (False, True):
        try:
            with clean_memory(device):
                found = measure(checkpointing)
                found["peak_memory_bytes"] = peak_memory(device)
        except (torch.OutOfMemoryError, RunFailedError) as error:
            reason = str(error).partition("\n")[0][:200]
            continue
        # In parts a batch fits too, but products are smaller then: computing layers twice may be the better answer.
        if not any("Out of memory" in note for note in found["notes"]):
            break
    return found or {"failed": reason}


def measure_size(name: str, folder: Path, device: torch.device, peaks: MatmulPeaks) -> list[dict[str, Any]]:
    """A row of the table for each kind of work."""
    size, run = SIZES[name], preset_spec("bert-click", "random words")
    on_card = device.type == "cuda"
    dtype, autocast, _ = precision_of(run, device)
    peak = peaks.fp32_gflops if (autocast or dtype) == torch.float32 else peaks.bf16_gflops
    rows, steps = (size.rows, 6) if on_card else (2, 1)

    def training(method: Work) -> dict[str, Any]:
        def measure(checkpointing: bool) -> dict[str, Any]:
            spec = run.training.model_copy(update={"gradient_checkpointing": checkpointing})
            return training_speed(folder, method, rows, steps, device, run.model_copy(update={"training": spec}))

        return in_memory(measure, device)

    def scoring() -> dict[str, Any]:
        users, candidates, calls = (4, 200, 4) if on_card else (1, 20, 1)
        return in_memory(lambda _: scoring_speed(folder, users, candidates, calls, device, run), device)

    found = []
    for work, measured in (
        ("full", lambda: training("full")), ("lora", lambda: training("lora")), ("scoring", scoring)
    ):  # fmt: skip
        row = {"model": name, "title": size.title, "work": work} | measured()
        if "gflops" in row:
            row["share_of_peak"] = round(row["gflops"] / peak, 4)
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


# ---- the table -------------------------------------------------------------------------------------------------------


def table(document: dict[str, Any]) -> str:
    rows = [
        f"{document['device']}; best product {document['peak_bf16_gflops']:,.0f} GFLOP/s in bf16, "
        f"{document['peak_fp32_gflops']:,.0f} in fp32; {document['precision']}",
        "",
        "| model | weights | work | tokens/s | prompts/s | share of peak | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        start = f"| {row['title']} | {row['weights']} | {row['work']} |"
        if "failed" in row:
            rows.append(f"{start} {row['failed']} | | | |")
            continue
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.1f} GB"
        twice = " (layers computed twice)" if row.get("gradient_checkpointing") else ""
        rows.append(
            f"{start} {row['tokens_per_s']:,.0f}{twice} | {row['prompts_per_s']:,.0f} | {row['share_of_peak']:.0%} "
            f"| {memory} |"
        )
    return "\n".join(rows)


def chosen_sizes(names: Sequence[str]) -> list[str]:
    if names == ["all"]:
        return [name for name in SIZES if name != "tiny"]
    return ["tiny"] if names == ["smallest"] else list(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["all"], choices=["all", "smallest", *SIZES])
    parser.add_argument("--workspace", help="MiniLM and SmolLM2 are taken from there, if they are in it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu.json on a card, nothing elsewhere")
    given = parser.parse_args()
    device = resolve_device(given.device)
    on_card = device.type == "cuda"
    # Small products say little about a card, and large ones take a processor minutes.
    peaks = matmul_peaks(4.0, device, 8192) if on_card else matmul_peaks(0.4, device, 512)
    _, _, reason = precision_of(preset_spec("bert-click", "random words"), device)
    document: dict[str, Any] = {
        "what": "tokens a second and share of the measured matmul peak, medians of five windows",
        "device": torch.cuda.get_device_name(device) if on_card else "CPU",
        "precision": reason,
        "peak_fp32_gflops": round(peaks.fp32_gflops, 1),
        "peak_bf16_gflops": round(peaks.bf16_gflops, 1),
        "wanted_share_of_peak": TARGETS,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rows": [],
    }
    out = given.out or (RESULT if on_card else None)
    workspace = Workspace.open(given.workspace) if given.workspace else None
    for name in chosen_sizes(given.sizes):
        real = SIZES[name].real
        folder = model_folder(workspace, real) if workspace and real else None
        with tempfile.TemporaryDirectory() as scratch:
            path = folder or write_random_model(Path(scratch) / "model", SIZES[name].config)
            for row in measure_size(name, path, device, peaks):
                document["rows"].append(row | {"weights": "pretrained" if folder else "random"})
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
