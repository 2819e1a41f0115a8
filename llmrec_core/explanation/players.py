"""The players of one explanation: what a person would name as a reason, and how to take it away.

A player is a past interaction, a profile field, a context key or a field of the candidate. A :class:`Game` fixes
the players of one (query, candidate) and turns any coalition of them back into a query that a recommender can
score, so that explainers need to know nothing about prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from llmrec_core.contracts import TITLE, HistoryItem, Player, Query, Recommender, RenderedPrompt, SpanKind
from llmrec_core.errors import InputError

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

#: 2**14 = 16,384 scorings is the most that anybody should wait for. Merged as far as it goes there are still five
#: seats: history, profile, context, the candidate's title and its other fields.
MIN_PLAYERS, MAX_PLAYERS = 5, 14
#: Players unless somebody says how many: 4,096 scorings by an encoder take seconds, by a decoder minutes.
USUAL_PLAYERS, USUAL_PLAYERS_OF_DECODERS = 12, 8


class Renders(Protocol):
    """What makes prompts: :class:`llmrec_core.prompts.PromptRenderer`."""

    def render(self, query: Query, item_idx: int) -> RenderedPrompt: ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """A recommender that turns a query and a candidate into text before it scores."""

    @property
    def renderer(self) -> Renders:
        """Makes the prompts that are scored."""
        ...


@dataclass(frozen=True)
class Seat:
    """One player before it has a value: one ref, or several that appear and vanish together.

    ``refs``: history positions in the original query (as text), or field names of one ``kind``.
    """

    kind: SpanKind
    refs: tuple[str, ...]
    text: str

    @property
    def ref(self) -> str:
        """As :class:`llmrec_core.contracts.Player` has it: ``3``, ``0-4`` or ``age,gender``."""
        if self.kind in ("history", "history-group"):
            return _ranges([int(ref) for ref in self.refs])
        return ",".join(self.refs)

    def with_value(self, value: float) -> Player:
        return Player(self.kind, self.ref, self.text, float(value))


@dataclass(frozen=True)
class Game:
    """The fixed player set of one query and one candidate.

    Attributes:
        original: the query as asked. Positions in ``seats`` and in ``prompt.spans`` count in its history.
        query: the query restricted to what the recommender really used; its history keeps ``positions``.
        seats: the players: history from newest to oldest, then profile, context, candidate fields.
        prompt: the rendered prompt of ``original``; None for recommenders that read no text.
    """

    original: Query
    query: Query
    item_idx: int
    positions: tuple[int, ...]
    seats: tuple[Seat, ...]
    prompt: RenderedPrompt | None

    def coalition(self, present: Sequence[bool]) -> Query:
        """The query in which exactly the seats marked present are visible, [n_seats].

        An absent history item is removed, an absent profile or context value is empty, an absent candidate field
        hidden. Fields that are no player (shown in no prompt) stay as they are: nobody reads them.
        """
        absent: dict[str, set[str]] = {"history": set(), "profile": set(), "context": set(), "candidate": set()}
        for seat, is_present in zip(self.seats, present, strict=True):
            if not is_present:
                absent["history" if seat.kind == "history-group" else seat.kind].update(seat.refs)
        history = tuple(
            item
            for position, item in zip(self.positions, self.query.history, strict=True)
            if str(position) not in absent["history"]
        )
        return replace(
            self.query,
            history=history,
            profile=_blanked(self.query.profile, absent["profile"]),
            context=_blanked(self.query.context, absent["context"]),
            hidden_fields=self.query.hidden_fields | absent["candidate"],
        )


def find_players(
    recommender: Recommender,
    dataset: Dataset,
    query: Query,
    item_idx: int,
    max_players: int | None = None,
    task: str | None = None,
) -> Game:
    """Fixes who plays.

    Text recommenders are asked for the full prompt; its spans say which history items, fields and keys were used.
    Older items that the token budget dropped must not slip in when newer ones are taken away, so the history is
    cut to the used part first - unless that changes the score: then something besides the prompt reads the whole
    history (a pipeline's retriever does), and the rest plays along as part of the oldest group. Recommenders
    without text play with their whole history.

    More seats than ``max_players`` are merged, so that 2**n stays exact: the oldest history items become one
    group; if that is not enough, the profile, then the context, then the candidate's fields besides its title.
    None: :data:`USUAL_PLAYERS`, for decoders :data:`USUAL_PLAYERS_OF_DECODERS`.

    Raises:
        InputError: ``max_players`` outside 5-14, or an item outside the catalogue.
    """
    if max_players is None:
        max_players = USUAL_PLAYERS_OF_DECODERS if recommender.capabilities.decoder else USUAL_PLAYERS
    if not MIN_PLAYERS <= max_players <= MAX_PLAYERS:
        raise InputError(
            f"max_players is {max_players}; an exact explanation takes {MIN_PLAYERS} to {MAX_PLAYERS}.",
            where="max_players",
            fix=f"{MAX_PLAYERS} players already need {2**MAX_PLAYERS:,} scorings.",
        )
    if not 0 <= item_idx < recommender.n_items:
        raise InputError(
            f"item number {item_idx} is outside the catalogue of {recommender.n_items} items.", where="item_idx"
        )
    everything = tuple(range(len(query.history)))
    prompt: RenderedPrompt | None = None
    single = everything
    grouped: tuple[int, ...] = ()
    fields: list[Seat] = []
    if recommender.capabilities.text:
        prompt = render_prompt(recommender, query, item_idx)
        single = prompt_positions(prompt)
        if single != everything:
            used_only = replace(query, history=tuple(query.history[i] for i in single))
            pair = recommender.score([query, used_only], np.full((2, 1), item_idx, dtype=np.int64), task=task)[:, 0]
            if not np.isclose(pair[0], pair[1], rtol=1e-3, atol=1e-4):
                grouped = tuple(i for i in everything if i not in set(single))
        fields = _field_seats(dataset, query, item_idx, prompt)

    history = [_history_seat(dataset, position, query.history[position]) for position in reversed(single)]
    seats = _merge(history, grouped, fields, max_players)
    positions = tuple(sorted(single + grouped))
    kept = replace(query, history=tuple(query.history[i] for i in positions))
    return Game(query, kept, item_idx, positions, seats, prompt)


def render_prompt(recommender: Recommender, query: Query, item_idx: int) -> RenderedPrompt:
    """The prompt a text recommender scores, or the ranker inside a pipeline does.

    Raises:
        InputError: it reads no prompts.
    """
    reader = recommender if isinstance(recommender, ReadsPrompts) else getattr(recommender, "ranker", None)
    if not isinstance(reader, ReadsPrompts):
        raise InputError(
            f"the recommender {recommender.family!r} does not show its prompts.",
            fix="Explain a run with a language model.",
        )
    return reader.renderer.render(query, item_idx)


def prompt_positions(prompt: RenderedPrompt) -> tuple[int, ...]:
    """History positions that have a span in the prompt, ascending."""
    found: set[int] = set()
    for span in prompt.spans:
        if span.kind in ("history", "history-group"):
            found.update(expand_ref(span.ref))
    return tuple(sorted(found))


def seat_of(kind: str, ref: str, seats: Sequence[Seat | Player]) -> int:
    """Index of the seat or valued player that a span belongs to; -1: none.

    A span of several history positions belongs to the player of its first.
    """
    for index, seat in enumerate(seats):
        if kind in ("history", "history-group"):
            if seat.kind in ("history", "history-group") and expand_ref(ref)[0] in expand_ref(seat.ref):
                return index
        elif seat.kind == kind and (ref == seat.ref or ref in seat.ref.split(",")):
            return index
    return -1


def expand_ref(ref: str) -> list[int]:
    """``"3"`` -> [3]; ``"0-2,5"`` -> [0, 1, 2, 5]."""
    positions: list[int] = []
    for part in ref.split(","):
        first, _, last = part.partition("-")
        positions.extend(range(int(first), int(last or first) + 1))
    return positions


def _ranges(positions: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> ``"0-2,5"``: inclusive runs of ascending positions."""
    runs: list[list[int]] = []
    for position in sorted(positions):
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _blanked(fields: Mapping[str, str], names: set[str]) -> dict[str, str]:
    """Emptied rather than removed: a template that names the key must still render."""
    return {name: "" if name in names else value for name, value in fields.items()}


def _history_seat(dataset: Dataset, position: int, item: HistoryItem) -> Seat:
    index = dataset.item_index.get(item.item_id)
    title = item.item_id if index is None else (dataset.item_text(index, TITLE) or item.item_id)
    rating = "" if item.rating is None or not np.isfinite(item.rating) else f", rated {item.rating:g}"
    return Seat("history", (str(position),), f"{title}{rating}")


def _field_seats(dataset: Dataset, query: Query, item_idx: int, prompt: RenderedPrompt) -> list[Seat]:
    """Profile, context and candidate fields with a span in the prompt, each once, in that order."""
    seats: dict[tuple[str, str], Seat] = {}
    for kind in ("profile", "context", "candidate"):
        for span in prompt.spans:
            if span.kind != kind or (kind, span.ref) in seats:
                continue
            if kind == "candidate" and span.ref in query.hidden_fields:
                continue  # hidden from the start: "unknown" is no reason
            if kind == "candidate":
                value = dataset.item_text(item_idx, span.ref) or str(dataset.item_ids[item_idx])
            else:
                value = (query.profile if kind == "profile" else query.context).get(span.ref, "")
            seats[kind, span.ref] = Seat(span.kind, (span.ref,), f"{span.ref}: {value}")
    return list(seats.values())


def _merge(history: list[Seat], grouped: tuple[int, ...], fields: list[Seat], max_players: int) -> tuple[Seat, ...]:
    """At most ``max_players`` seats from single history items (newest first), positions that only play as a
    group, and fields."""

    def n_history() -> int:
        return min(len(history), 1) if not grouped else 1

    for kind in ("profile", "context", "candidate"):
        if n_history() + len(fields) <= max_players:
            break
        fields = _merge_fields(fields, kind)
    room = max_players - len(fields)
    rest = [int(ref) for seat in history for ref in seat.refs]
    if len(history) + bool(grouped) <= room:
        kept, rest = history, []
    else:
        # One place belongs to the group; MIN_PLAYERS sees to it that there is one.
        kept, rest = history[: room - 1], rest[room - 1 :]
    older = sorted([*rest, *grouped])
    if older:
        noun = "item" if len(older) == 1 else "items"
        text = f"{len(older)} older {noun}" if kept else f"{len(older)} {noun} of the history"
        kept = [*kept, Seat("history-group", tuple(map(str, older)), text)]
    return (*kept, *fields)


def _merge_fields(fields: list[Seat], kind: str) -> list[Seat]:
    """All fields of one kind as one seat; a candidate's title stays alone, being what people look for."""
    members = [seat for seat in fields if seat.kind == kind and not (kind == "candidate" and seat.refs == (TITLE,))]
    if len(members) < 2:
        return fields
    merged = Seat(members[0].kind, tuple(seat.refs[0] for seat in members), "; ".join(seat.text for seat in members))
    at = fields.index(members[0])
    rest = [seat for seat in fields if seat not in members]
    return [*rest[:at], merged, *rest[at:]]
