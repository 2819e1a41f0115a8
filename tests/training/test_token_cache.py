"""Kept tokens: the same training as with fresh ones, nothing believed unchecked, bounded, and gone with a dataset."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from prompts.test_tokens import word_pieces
from training.training_cases import Events, planted_run, planted_split

from llmrec_core.contracts import FitContext, HistoryItem, Query
from llmrec_core.data import Dataset
from llmrec_core.models.loading import Backbone
from llmrec_core.prompts import PromptRenderer, TokenCounter
from llmrec_core.recommenders.registry import build
from llmrec_core.specs import PromptSpec
from llmrec_core.training import token_cache
from llmrec_core.training.augmentation import Wordings
from llmrec_core.training.packing import Ragged, TokenisedPrompts
from llmrec_core.training.token_cache import Question, TokenCache, kept_bytes, kept_tokens

KEY = "k" * 64
TOKENS = TokenisedPrompts(
    Ragged.of([[2, 7, 8], [], [9]]), Ragged.of([[5, 3], [6]]), np.array([0, 0, 2, 1]), np.array([0, 1, 1, 0])
)


def reader(max_tokens: int = 9, n_words: int = 10) -> Backbone:
    facts = SimpleNamespace(max_tokens=max_tokens, config={"vocab_size": n_words})
    return Backbone(model=None, tokenizer=word_pieces(), facts=facts, pad_id=0, attention="eager")  # type: ignore[arg-type]


def values(tokens: TokenisedPrompts) -> list[list[int]]:
    return [
        array.tolist()
        for array in (
            tokens.heads.flat, tokens.heads.starts, tokens.tails.flat, tokens.tails.starts, tokens.head_of,
            tokens.tail_of,
        )
    ]  # fmt: skip


# ---- the same training -----------------------------------------------------------------------------------------------


def test_a_training_reads_what_the_one_before_made(tmp_path, models):
    split = planted_split(12)

    def fit(cache: Path | None, **training: Any) -> tuple[list[float], str]:
        run = planted_run(models, max_samples=32, validation_samples=16, negatives_per_positive=1, **training)
        events = Events()
        context = FitContext(workspace_models=models, device="cpu", seed=0, emit=events.emit, token_cache=cache)
        build(run, run.recommender).fit(split, context)
        return [event["loss"] for event in events.of("train")], events.messages

    fresh, said = fit(None)
    assert "Tokens of" not in said
    made, said = fit(tmp_path / "planted")
    assert said.count(" s and kept for runs that ask for the same") == 2, "training and validation prompts"
    read, said = fit(tmp_path / "planted")
    assert "Tokens of 32 training prompts: read from the cache in " in said
    assert "Tokens of 16 validation prompts: read from the cache in " in said
    assert len(fresh) > 1
    assert fresh == made == read
    _, said = fit(tmp_path / "planted", learning_rate=1e-4, epochs=2)
    assert said.count("read from the cache") == 2, "how it is learned is no matter of the tokens"
    assert len(list((tmp_path / "planted").iterdir())) == 2


# ---- what is on disk -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_mapped(tmp_path):
    cache = TokenCache(tmp_path / "d")
    assert cache.read(KEY, 4, reader()) is None
    assert cache.write(KEY, TOKENS) == 4 * (4 + 3) + 8 * (4 + 3 + 4 + 4)
    found = cache.read(KEY, 4, reader())
    assert found is not None
    assert values(found) == values(TOKENS)
    assert not found.heads.flat.flags.writeable, "it is the file itself"
    assert [array.dtype for array in (found.heads.flat, found.tails.starts, found.head_of)] == [
        np.dtype("int32"), np.dtype("int64"), np.dtype("int64"),
    ]  # fmt: skip
    (tmp_path / "d" / f"{KEY}.arrow").unlink()
    assert values(found) == values(TOKENS), "whoever has it mapped goes on reading"
    none = TokenisedPrompts(Ragged.of([]), Ragged.of([]), np.empty(0, np.int64), np.empty(0, np.int64))
    cache.write(KEY, none)
    assert values(cache.read(KEY, 0, reader())) == values(none)


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """A file as the cache would write it of changed arrays, with a hash that fits them."""
    names = list(token_cache._COLUMNS)
    columns = {
        name: np.array(row, token_cache._COLUMNS[name].to_pandas_dtype())
        for name, row in zip(names, values(TOKENS), strict=True)
    }
    note: dict[str, Any] = {"key": KEY}
    schema = change(columns, note) or token_cache._SCHEMA
    note.setdefault("sha256", token_cache._digest(columns))
    arrays = [pa.LargeListArray.from_arrays(pa.array([0, len(row)], pa.int64()), row) for row in columns.values()]
    schema = schema.with_metadata({b"llmrec": json.dumps(note)})
    path.parent.mkdir(exist_ok=True)
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(
            pa.record_batch([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)
        )


def put(name: str, *row: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda columns, note: columns.update({name: np.array(row, columns[name].dtype)})


HOSTILE = {
    "nothing wrong": (lambda columns, note: None, None),
    "another key": (lambda columns, note: note.update(key="x" * 64), "of other prompts"),
    "a note that is none": (lambda columns, note: note.update(key=None), "of other prompts"),
    "no hash": (lambda columns, note: note.update(sha256=3), "not those that were written"),
    "another content": (lambda columns, note: note.update(sha256="0" * 64), "not those that were written"),
    "a token beyond the words": (put("heads", 2, 7, 10, 9), "the model does not know"),
    "a token below them": (put("tails", 5, -3, 6), "the model does not know"),
    "a head that is not there": (put("head_of", 0, 3, 2, 1), "of every prompt"),
    "a tail before the first": (put("tail_of", 0, 1, -1, 0), "of every prompt"),
    "fewer prompts": (put("head_of", 0, 0, 2), "of every prompt"),
    "rows beyond the end": (put("head_starts", 0, 3, 3, 400), "end to end"),
    "rows backwards": (put("head_starts", 0, 4, 3, 4), "end to end"),
    "no row at all": (put("tail_starts"), "end to end"),
    "an empty tail": (put("tail_starts", 0, 3, 3), "of a length"),
    "other columns": (
        lambda columns, note: pa.schema([f.with_type(pa.large_list(pa.float64())) for f in token_cache._SCHEMA]),
        "not hold what it should",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_files_are_checked_before_they_are_used(tmp_path, name):
    change, said = HOSTILE[name]
    cache = TokenCache(tmp_path / "d")
    forge(tmp_path / "d" / f"{KEY}.arrow", change)
    if said is None:
        assert values(cache.read(KEY, 4, reader())) == values(TOKENS)
        for wrong, expected in ((reader(max_tokens=4), "of a length"), (reader(n_words=9), "does not know")):
            with pytest.raises(ValueError, match=expected):
                cache.read(KEY, 4, wrong)
        return
    with pytest.raises(ValueError, match=said):
        cache.read(KEY, 4, reader())


def test_offsets_of_the_file_itself_are_checked(tmp_path):
    cache, path = TokenCache(tmp_path / "d"), tmp_path / "d" / f"{KEY}.arrow"
    cache.write(KEY, TOKENS)
    whole = path.read_bytes()
    # The numbers 0 and 3 stand among the starts of heads, then as the ends of all tails.
    place = [at for at in range(0, len(whole), 8) if whole[at : at + 16] == np.array([0, 3]).tobytes()][1]
    for end in (1 << 40, -1, 4):
        path.write_bytes(whole[: place + 8] + np.array([end]).tobytes() + whole[place + 16 :])
        with pytest.raises(ValueError, match="ArrowInvalid"):
            cache.read(KEY, 4, reader())


def test_damaged_files_are_told_and_written_anew(tmp_path):
    made: list[int] = []

    def make() -> TokenisedPrompts:
        made.append(1)
        return TOKENS

    question = SimpleNamespace(key=lambda backbone: KEY, n_prompts=4)
    path = tmp_path / "d" / f"{KEY}.arrow"

    def ask() -> tuple[TokenisedPrompts, str]:
        events = Events()
        context = FitContext(emit=events.emit, token_cache=path.parent)
        found = kept_tokens(question, make, reader(), context, "training")  # type: ignore[arg-type]
        return found, events.messages

    ask()
    whole = path.read_bytes()
    middle = whole.index(np.array([2, 7, 8, 9], np.int32).tobytes())
    flipped = whole[:middle] + b"\x03" + whole[middle + 1 :]
    for damage in (b"", b"junk" * 300, whole[:-200], whole[: len(whole) // 2], flipped):
        path.write_bytes(damage)
        found, said = ask()
        assert "Tokens of 4 training prompts: the kept file kkkkkkkkkkkk cannot be used (" in said
        assert values(found) == values(TOKENS)
        assert path.read_bytes() == whole
    assert len(made) == 6
    assert "read from the cache" in ask()[1]
    assert len(made) == 6


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "d").write_text("a file")
    events = Events()
    question = SimpleNamespace(key=lambda backbone: KEY, n_prompts=4)
    context = FitContext(emit=events.emit, token_cache=tmp_path / "d")
    assert kept_tokens(question, lambda: TOKENS, reader(), context, "training") is TOKENS  # type: ignore[arg-type]
    assert "they cannot be kept" in events.messages
    assert [event["level"] for event in events.of("log")] == ["warning"]


def test_the_oldest_go_when_room_is_short(tmp_path):
    size = TokenCache(tmp_path / "a").write(KEY, TOKENS)
    file_size = (tmp_path / "a" / f"{KEY}.arrow").stat().st_size
    assert file_size > size
    TokenCache(tmp_path / "b").write("two", TOKENS)
    TokenCache(tmp_path / "b").write("three", TOKENS)
    (tmp_path / "b" / ".tokens.dead").write_bytes(b"x")
    (tmp_path / "b" / ".tokens.alive").write_bytes(b"x")
    for age, name in ((9_000, f"a/{KEY}"), (8_000, "b/two"), (7_000, "b/three"), (9_000, "b/.tokens.dead")):
        path = tmp_path / (name if "dead" in name else f"{name}.arrow")
        os.utime(path, (time.time() - age,) * 2)
    # Read just now, so it was not longest unused.
    assert TokenCache(tmp_path / "a").read(KEY, 4, reader()) is not None
    TokenCache(tmp_path / "c", max_bytes=3 * file_size).write("four", TOKENS)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    assert kept_bytes(tmp_path) == sum(len(path.read_bytes()) for path in tmp_path.glob("*/*.arrow")) <= 3 * file_size
    assert left == [f"a/{KEY}.arrow", "b/.tokens.alive", "b/three.arrow", "c/four.arrow"]
    assert TokenCache(tmp_path / "c", max_bytes=size - 1).write("five", TOKENS) == 0
    assert not (tmp_path / "c" / "five.arrow").exists()


def test_many_may_read_and_write_at_once(tmp_path):
    cache = TokenCache(tmp_path / "d")

    def work(number: int) -> bool:
        if number % 2:
            return cache.write(KEY, TOKENS) > 0
        found = cache.read(KEY, 4, reader())
        return found is None or values(found) == values(TOKENS)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert [path.name for path in (tmp_path / "d").iterdir()] == [f"{KEY}.arrow"]


# ---- what decides tokens ---------------------------------------------------------------------------------------------

HISTORY = tuple(HistoryItem(f"i{n % 3}", float(n % 5), 100.0 * n) for n in range(6))
QUERY = Query("u", HISTORY, {"age": "30"}, {"scene": "bus"})
ITEMS = pd.DataFrame({"item_id": ["i0", "i1", "i2"], "title": ["a", "b", "c"]})
ROWS = pd.DataFrame({"user_id": ["u", "u"], "item_id": ["i0", "i1"], "rating": [1.0, 5.0]})
SOURCE = "{% for h in history %}{{ h.title }} {% endfor %}: {{ candidate.title }}"


def question(*queries: Query, items: pd.DataFrame = ITEMS, **changes: Any) -> Question:
    spec = {"source": SOURCE, "max_history": 4, **changes.pop("spec", {})}
    words: Any = PromptRenderer(PromptSpec(**spec), Dataset.from_frames("d", ROWS, items), TokenCounter(word_pieces()))
    if (seed := changes.pop("wordings", None)) is not None:
        words = Wordings([words, words], seed)
    found = Question("pairs", words, queries or (QUERY, QUERY), np.array([0, 0, 1]), np.array([2, 0, 1]), True)
    return replace(found, **changes)


def ending(last: HistoryItem) -> Question:
    return question(QUERY, replace(QUERY, history=(*HISTORY[:-1], last)))


OTHERS = {
    "another item in the history": ending(HistoryItem("i1", 0.0, 500.0)),
    "another rating": ending(HistoryItem("i2", 1.0, 500.0)),
    "another time": ending(HistoryItem("i2", 0.0, 501.0)),
    "a longer past": question(QUERY, replace(QUERY, history=(HISTORY[0], *HISTORY))),
    "another profile": question(QUERY, replace(QUERY, profile={"age": "31"})),
    "another moment": question(QUERY, replace(QUERY, context={"scene": "train"})),
    "a hidden field": question(QUERY, replace(QUERY, hidden_fields=frozenset({"title"}))),
    "other candidates": replace(question(), items=np.array([2, 1, 0])),
    "other lists": replace(question(), query_of=np.array([0, 1, 1])),
    "lists": question(layout="lists"),
    "whole prompts": question(shared=False),
    "another template": question(spec={"source": SOURCE + "."}),
    "another budget": question(spec={"max_tokens": 40}),
    "another catalogue": question(items=ITEMS.assign(title=["a", "b", "d"])),
    "several wordings": question(wordings=0),
    "several wordings, drawn otherwise": question(wordings=1),
}


def test_everything_that_decides_tokens_is_in_the_key():
    keys = {name: asked.key(reader()) for name, asked in OTHERS.items()}
    keys["the question itself"] = ending(HISTORY[-1]).key(reader())
    keys["a model that reads less"] = question().key(reader(max_tokens=8))
    other = reader()
    other.tokenizer.add_tokens(["cab"])
    keys["another tokenizer"] = question().key(other)
    assert len(set(keys.values())) == len(keys)
    assert question().key(reader()) == keys["the question itself"]
    # What no prompt shows is not in it: who it is, and what lies further back than it may look.
    older = replace(QUERY, user_id="v", history=(HistoryItem("i1", 5.0, 1.0), *HISTORY[1:]))
    assert question(QUERY, older).key(reader()) == keys["the question itself"]
