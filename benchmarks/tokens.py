"""Making the tokens of prompts: by halves against whole, and reading kept ones against making them. Run by hand::

    python -m benchmarks.tokens --workspace DIR --one-thread [scoring] [kept]

``DIR`` holds MovieLens-100K (``llmrec data public ml-100k``). Each part writes itself into
``benchmarks/results/tokens.json``; the protocol is in ``benchmarks/README.md``.

- ``scoring``: prompts of 40 validation users with 50 drawn candidates each, rendered and tokenised for MiniLM. Plain:
  every prompt whole, as before there were halves. Ours: heads and tails once each. Renderers are new in each window.
  Beside it stands what MiniLM then takes to score them.
- ``kept``: the training and validation samples of the preset ``bert-click`` (8,000 and 512 prompts; ``--samples``:
  another number of training prompts), each window with another seed. Plain: rendered and tokenised as ``fit`` does.
  Ours: the key of the question, then the kept file, mapped and checked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._machine import machine
from benchmarks.scoring import WINDOWS, alternate
from llmrec_core.contracts import Query
from llmrec_core.data import DatasetStore, make_split
from llmrec_core.models.catalogue import fetch_model
from llmrec_core.models.heads import TaskHeads
from llmrec_core.models.loading import load_backbone
from llmrec_core.presets import preset_spec
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.specs import PromptSpec, SplitSpec
from llmrec_core.training.network import PromptNetwork
from llmrec_core.training.packing import TokenisedPrompts, tokenise
from llmrec_core.training.samples import SampleLists, training_lists, validation_lists
from llmrec_core.training.token_cache import Question, TokenCache
from llmrec_core.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "tokens.json"


def same(one: TokenisedPrompts, other: TokenisedPrompts) -> bool:
    """Whether both are equal, array by array."""
    parts = [(t.heads.flat, t.heads.starts, t.tails.flat, t.tails.starts, t.head_of, t.tail_of) for t in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*parts, strict=True))


def scoring(workspace: Workspace, dataset_name: str, n_users: int = 40, n_candidates: int = 50) -> dict[str, Any]:
    folder = fetch_model(workspace, "minilm")
    dataset = DatasetStore(workspace).load(dataset_name)
    split = make_split(dataset, SplitSpec())
    held = split.queries("valid")
    halved, whole = (load_backbone(folder, trainable=False) for _ in range(2))
    # What a tokenizer that is not known to read a text by its parts would have.
    whole.around = None
    assert halved.around is not None
    counter = TokenCounter.from_folder(folder)
    rng = np.random.default_rng(0)
    pairs: list[list[tuple[Query, int]]] = []
    for users in rng.permutation(len(held.queries))[: WINDOWS * n_users].reshape(WINDOWS, n_users):
        drawn = [(held.queries[u], rng.choice(split.catalogue, n_candidates, replace=False)) for u in users.tolist()]
        pairs.append([(query, int(item)) for query, items in drawn for item in items])
    found: dict[str, TokenisedPrompts] = {}
    equal = []

    def side(name: str, window: int) -> None:
        renderer = PromptRenderer(PromptSpec(max_tokens=128, max_history=8), dataset, counter)
        if name == "plain":
            renderer._halves = None
        backbone = whole if name == "plain" else halved
        found[name] = tokenise(backbone, renderer.render_many(pairs[window]), shared=True)
        if name == "ours":
            equal.append(same(found["plain"], found["ours"]))

    result = alternate(lambda window: side("plain", window), lambda window: side("ours", window))
    heads = TaskHeads(halved.hidden_size, ("click",), seed=0)
    network = PromptNetwork(halved, heads, pooling=halved.default_pooling, shared=True).eval()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(2):
        started = clock()
        network.predict(found["ours"], ("click",))
        seconds.append(clock() - started)
    return result | {
        "users_a_window": n_users,
        "candidates": n_candidates,
        "tokens_of_a_prompt": round(float(found["ours"].n_tokens.mean()), 1),
        "same_tokens": all(equal),
        "model_s": round(min(seconds), 2),
    }


def kept(workspace: Workspace, dataset_name: str, n_samples: int | None = None) -> dict[str, Any]:
    dataset = DatasetStore(workspace).load(dataset_name)
    run = preset_spec("bert-click", dataset.name, {})
    if n_samples is not None:
        run = run.model_copy(update={"training": run.training.model_copy(update={"max_samples": n_samples})})
    split = make_split(dataset, run.split)
    folder = fetch_model(workspace, "minilm")
    backbone = load_backbone(folder, trainable=False)
    counter = TokenCounter.from_folder(folder)
    samples = [(training_lists(split, run, seed), validation_lists(split, run, seed)) for seed in range(WINDOWS)]
    made: dict[int, list[TokenisedPrompts]] = {}
    equal: list[bool] = []

    def question(renderer: PromptRenderer, lists: SampleLists) -> Question:
        return Question("pairs", renderer, lists.queries, lists.list_of, lists.items, True)

    with tempfile.TemporaryDirectory(dir=workspace.root) as place:
        cache = TokenCache(Path(place) / "tokens" / dataset.name)

        def plain(window: int) -> None:
            renderer = PromptRenderer(run.prompt, dataset, counter)
            made[window] = [
                tokenise(backbone, renderer.render_many(lists.pairs()), shared=True) for lists in samples[window]
            ]

        def ours(window: int) -> None:
            renderer = PromptRenderer(run.prompt, dataset, counter)
            for number, lists in enumerate(samples[window]):
                asked = question(renderer, lists)
                tokens = cache.read(asked.key(backbone), asked.n_prompts, backbone)
                equal.append(tokens is not None and same(tokens, made[window][number]))

        for window in range(WINDOWS):
            plain(window)
            renderer = PromptRenderer(run.prompt, dataset, counter)
            for lists, tokens in zip(samples[window], made[window], strict=True):
                cache.write(question(renderer, lists).key(backbone), tokens)
        result = alternate(plain, ours)
        size = sum(path.stat().st_size for path in cache.folder.iterdir()) // WINDOWS
    return result | {
        "training_prompts": len(samples[0][0]),
        "validation_prompts": len(samples[0][1]),
        "tokens_of_a_prompt": round(float(made[0][0].n_tokens.mean()), 1),
        "bytes_kept": size,
        "same_tokens": all(equal),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=["scoring", "kept"], help="scoring, kept")
    parser.add_argument("--workspace")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--samples", type=int, help="training prompts of the part `kept`")
    parser.add_argument("--one-thread", action="store_true", help="CPU seconds of one thread, for a busy machine")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.one_thread:
        torch.set_num_threads(1)
    workspace = Workspace.open(given.workspace)
    for part in given.parts:
        name = part if given.samples is None or part != "kept" else f"kept {given.samples}"
        found = (
            scoring(workspace, given.dataset) if part == "scoring" else kept(workspace, given.dataset, given.samples)
        )
        found["machine"] = machine()
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        given.out.write_text(json.dumps(known | {name: found}, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
