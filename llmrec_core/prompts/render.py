"""Queries and candidates become prompts inside a token budget, with a span for every piece that came from a player.

The budget is kept by leaving out the oldest history first. How many entries fit is found by trying: an estimate from
counted titles says where to start, and the answer is the longest history that fits while one entry more does not.

Where a template ends with the candidate, short candidates leave room for long ones: nearly all items of the catalogue
are asked about behind the same history. So their scores differ by what they are and not by how long they are, and a
model reads one history for all of them.
"""

from __future__ import annotations

import gc
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_core.contracts import TITLE, Query, RenderedPrompt
from llmrec_core.errors import InputError, SpecError, TemplateError
from llmrec_core.prompts._drafts import Draft, Part, count
from llmrec_core.prompts._items import (
    LETTERS,
    OTHER,
    Candidate,
    Cleaner,
    HistoryEntry,
    ItemShelf,
    ItemTexts,
    clip,
    history_entries,
    show_day,
)
from llmrec_core.prompts._operations import Fields
from llmrec_core.prompts._search import Around, Job, Known
from llmrec_core.prompts._text import Origin, Text
from llmrec_core.prompts.sandbox import Halves, Program
from llmrec_core.prompts.templates import prompt_sandbox, template_source
from llmrec_core.prompts.tokens import Counter
from llmrec_core.specs import PromptSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

_MAX_CACHED = 100_000
_MAX_TAILS = 20_000
#: The candidate's title is never clipped below this many characters.
_MIN_TITLE_CHARS = 8
#: (kind, ref) -> most characters of that value.
Limits = Mapping[Origin, int]
#: (query, items, position of the item that is asked about or None for all).
CandidateList = tuple[Query, Sequence[int], int | None]


#: Prompts worked on at a time.
_BLOCK = 2_048
#: Tokens that a line of a list takes besides its texts; it only steers the search.
_LINE = 4
#: More tokens than any budget.
_NEVER = 1_000_000
#: Room is kept for this share of the items, out of so many that are looked at, and not beyond that part of the budget:
#: an odd item with a long text takes its room from its own history, not from everybody's.
_ROOM_FOR, _LOOKED_AT, _MOST_ROOM = 0.99, 1_000, 0.25


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Pauses Python's cycle collector: rendering makes no cycles, and searching for some took most of its time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


class PromptRenderer:
    """Renders prompts of one spec over one dataset.

    Args:
        spec: template, fields and budget.
        dataset: the catalogue.
        counter: counts tokens, special ones included.
        source: the template's text; None: ``spec.source``, or the starter of that name.

    Raises:
        TemplateError: the template is unknown or does not compile.
        SpecError: ``item_fields`` or ``profile_fields`` names a column that is not there.
    """

    def __init__(self, spec: PromptSpec, dataset: Dataset, counter: Counter, source: str | None = None) -> None:
        self.spec = spec
        self.dataset = dataset
        self.counter = counter
        self.source = template_source(spec) if source is None else source
        self._where = "template" if spec.source is not None else f"template {spec.template!r}"
        self._program, self._halves = _compiled(self.source, self._where)
        #: Prints from the candidate on, where that is the same whoever is asked; and what it printed.
        self._ending = self._halves[1] if self._halves and self._halves[1].reads <= {"candidate"} else None
        self._tails: dict[Candidate, Part] = {}
        fields = spec.item_fields or tuple(f for f in dataset.category_fields if f in dataset.items.columns)
        _check_columns("item_fields", spec.item_fields, dataset.items.columns)
        _check_columns("profile_fields", spec.profile_fields, [c for c in dataset.users.columns if c != "user_id"])
        self._cleaner = Cleaner(counter.special_tokens)
        self._shelf = ItemShelf(dataset, [f for f in fields if f != TITLE], spec.max_field_chars, self._cleaner)
        self._candidates: dict[tuple[int, frozenset[str]], Candidate] = {}
        self._value_costs: dict[str, int] = {}
        self._clean_values: dict[str, str] = {}
        self._n_special = counter.count([""])[0]
        self._around = self._calibrate()

    def render(self, query: Query, item_idx: int) -> RenderedPrompt:
        """One prompt.

        Raises:
            InputError: ``item_idx`` is outside the catalogue.
            TemplateError: a missing field, a limit of the sandbox, or a template longer than the budget by itself.
        """
        return self.render_many([(query, item_idx)])[0]

    def render_many(self, pairs: Sequence[tuple[Query, int]]) -> list[RenderedPrompt]:
        """Prompts of (query, item_idx) pairs, in order; the same as :meth:`render` of each, but much faster.

        Raises:
            InputError, TemplateError: as :meth:`render`.
        """
        with _collector_at_rest():
            # In blocks, so that drafts do not pile up beside the finished prompts.
            return [
                prompt
                for start in range(0, len(pairs), _BLOCK)
                for prompt in self._render_block([(q, (item,), 0) for q, item in pairs[start : start + _BLOCK]])
            ]

    def render_lists(self, lists: Sequence[CandidateList]) -> list[RenderedPrompt]:
        """Prompts of (query, items, asked), the items lettered in their order: for templates that read ``candidates``.

        ``asked`` is the position of the one item that is asked about: only its fields are spans and only its fields
        can be hidden. None: all of them are.

        Raises:
            InputError: an item outside the catalogue, or no item or more than there are letters.
            TemplateError: as :meth:`render`.
        """
        with _collector_at_rest():
            return [
                prompt
                for start in range(0, len(lists), _BLOCK)
                for prompt in self._render_block(lists[start : start + _BLOCK])
            ]

    @property
    def reads_lists(self) -> bool:
        """Whether the template shows a list of candidates."""
        return "candidates" in self._program.reads

    def identity(self) -> str:
        """Text that is equal only for renderers that make the same prompts, where they count with one tokenizer."""
        facts = [self.source, self.spec.model_dump(mode="json"), self.dataset.fingerprint, self.dataset.like_threshold]
        return json.dumps([*facts, self._shelf.fields, type(self.counter).__name__, self.counter.special_tokens])

    def clean(self, value: str) -> str:
        """``value`` as prompts show it, in whole: one line, without control characters and control tokens."""
        return self._cleaner.clean(value)

    def _render_block(self, lists: Sequence[CandidateList]) -> list[RenderedPrompt]:
        budget = self.spec.max_tokens
        known: dict[int, Known] = {}
        jobs = []
        for query, items, asked in lists:
            shown = [int(item) for item in items]
            self._check_items(shown)
            prepared = known.get(id(query))
            if prepared is None:
                prepared = known[id(query)] = self._prepare(query)
            candidates = self._candidates_of(shown, asked, query.hidden_fields)
            jobs.append(Job(prepared, shown, asked, candidates))
        self._leave_room(jobs)
        for job in jobs:
            job.probe = self._estimate(job)
        searching = jobs
        while searching:
            drafts = [self._draft(job) for job in searching]
            counts = count(drafts, self.counter, self._n_special)
            still = []
            for job, draft, n_tokens in zip(searching, drafts, counts, strict=True):
                room = budget - n_tokens - job.left
                fits = room >= 0
                if fits:
                    job.draft, job.n_tokens = draft, n_tokens
                if not job.learn(fits, room):
                    still.append(job)
            searching = still
        return [self._finish(job) if job.fits >= 0 else self._squeeze(job) for job in jobs]

    # ---- preparing ---------------------------------------------------------------------------------------------------

    def _prepare(self, query: Query) -> Known:
        history = query.history
        first = max(0, len(history) - self.spec.max_history)
        entries = history_entries(
            self._shelf,
            history,
            first,
            show_ratings=self.spec.show_ratings,
            show_time=self.spec.show_time,
            like_threshold=self.dataset.like_threshold,
        )
        profile, context = self._person(query, {})
        shown = [*profile.mapping().values(), *context.mapping().values()]
        known = Known(query, entries, profile, context, sum(self._cost_of(value) + 3 for value in shown))
        total = 0
        for event in reversed(history[first:]):
            title, fields = self._costs(self._shelf.of_id(event.item_id))
            cost = title + fields if self._around.fields else title
            total += max(1, cost + self._around.entry)
            known.costs.append(total)
            known.least.append(cost + self._around.least)
        return known

    def _person(self, query: Query, limits: Limits) -> tuple[Fields, Fields]:
        """The profile (chosen fields that have a value) and the context (every key)."""
        profile, context = {}, {}
        for field in self.spec.profile_fields:
            if value := self._value("profile", field, query.profile.get(field), limits):
                profile[field] = value
        for key, raw in query.context.items():
            if value := self._value("context", key, raw, limits):
                context[key] = value
        return Fields(profile, self.spec.profile_fields), Fields(context, query.context)

    def _value(self, kind: str, ref: str, raw: Any, limits: Limits) -> Text | None:
        if raw is None:
            return None
        value = self._clean_values.get(raw)
        if value is None:
            if len(self._clean_values) >= _MAX_CACHED:
                self._clean_values.clear()
            value = self._clean_values[raw] = clip(self._cleaner.clean(str(raw)), self.spec.max_field_chars)
        value = clip(value, limits.get((kind, ref), len(value)))
        return Text.of(value, (kind, ref)) if value else None

    def _check_items(self, items: Sequence[int]) -> None:
        for idx in items:
            if not 0 <= idx < len(self._shelf.ids):
                raise InputError(
                    f"item number {idx} is outside the catalogue of {len(self._shelf.ids)} items.", where="item_idx"
                )
        if not 1 <= len(items) <= len(LETTERS):
            raise InputError(f"a list of {len(items)} candidates; it may hold 1 to {len(LETTERS)}.", where="item_idx")

    def _candidates_of(self, items: Sequence[int], asked: int | None, hidden: frozenset[str]) -> Sequence[Candidate]:
        if len(items) == 1:
            return (self._candidate(items[0], hidden),)
        return self._lettered(items, asked, hidden, {})

    def _lettered(
        self, items: Sequence[int], asked: int | None, hidden: frozenset[str], limits: Mapping[str, int]
    ) -> Sequence[Candidate]:
        return [
            Candidate(
                self._shelf.of_idx(idx), hidden if asked in (None, n) else frozenset(), limits, letter=LETTERS[n],
                asked=asked in (None, n),
            )
            for n, idx in enumerate(items)
        ]  # fmt: skip

    def _candidate(self, idx: int, hidden: frozenset[str]) -> Candidate:
        key = (idx, hidden)
        found = self._candidates.get(key)
        if found is None:
            if len(self._candidates) >= _MAX_CACHED:
                self._candidates.clear()
            found = self._candidates[key] = Candidate(self._shelf.of_idx(idx), hidden)
        return found

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def _draft(self, job: Job) -> Draft:
        """The prompt with as many entries as are tried, in halves where the template has them."""
        return self._halved(job) or Draft(Part(self._draw(job.known, job.candidates, job.probe)))

    def _halved(self, job: Job) -> Draft | None:
        """None: the template must be drawn whole, be it to say what is wrong with it."""
        if self._halves is None:
            return None
        begin, end = self._halves
        known, n_history = job.known, job.probe
        head = known.heads.get(n_history)
        try:
            if head is None:
                pieces, spent = begin.drawn(self._variables(known, (), n_history, begin.reads))
                head = known.heads[n_history] = Part(pieces, spent, last=False)
            if self._ending is not None and len(job.shown) == 1:
                tail = self._tail(self._ending, job.candidates[0])
            else:
                pieces, spent = end.drawn(self._variables(known, job.candidates, n_history, end.reads))
                tail = Part(pieces, spent, first=False)
        except TemplateError:
            return None
        limits = self._program.limits
        within = head.spent + tail.spent <= limits.fuel and head.size + tail.size <= limits.max_text_chars
        # Where one half is blank, what is stripped off the whole lies in the other.
        return Draft(head, tail) if within and head.text and tail.text else None

    def _tail(self, ending: Program, candidate: Candidate) -> Part:
        """What stands from the candidate on.

        Raises:
            TemplateError: it cannot be drawn.
        """
        found = self._tails.get(candidate)
        if found is None:
            if len(self._tails) >= _MAX_TAILS:
                self._tails.clear()
            pieces, spent = ending.drawn({"candidate": candidate})
            found = self._tails[candidate] = Part(pieces, spent, first=False)
        return found

    def _draw(self, known: Known, candidates: Sequence[Candidate], n_history: int) -> list[str]:
        """The output with the newest ``n_history`` entries."""
        return self._program.pieces(self._variables(known, candidates, n_history, self._program.reads))

    def _variables(
        self, known: Known, candidates: Sequence[Candidate], n_history: int, reads: frozenset[str]
    ) -> dict[str, Any]:
        """``candidates``: empty for what reads none of them."""
        entries = known.entries[len(known.entries) - n_history :]
        variables: dict[str, Any] = {
            "history": entries,
            "profile": known.profile,
            "context": known.context,
            "n_history": len(known.query.history),
        }
        if candidates:
            variables |= {"candidate": candidates[0], "candidates": list(candidates)}
        if "liked" in reads:
            variables["liked"] = [entry for entry in entries if entry.liked]
        if "disliked" in reads:
            variables["disliked"] = [entry for entry in entries if entry.liked is False]
        if "neutral" in reads:
            variables["neutral"] = [entry for entry in entries if entry.liked is None]
        return variables

    def _finish(self, job: Job, clipped: Sequence[str] = ()) -> RenderedPrompt:
        assert job.draft is not None
        spans = job.draft.spans()
        shown = {span.ref for span in spans if span.kind == "candidate"}
        items = [self._shelf.of_idx(idx) for n, idx in enumerate(job.shown) if job.asked in (None, n)]
        cut = [c for c in sorted(shown) if any(item.is_clipped(c) for item in items) and c not in clipped]
        dropped = len(job.known.entries) - job.fits
        return RenderedPrompt(job.draft.text, spans, job.n_tokens, dropped, (*clipped, *cut))

    def _squeeze(self, job: Job) -> RenderedPrompt:
        """Too long even without history: clips the profile, then the candidate's longest fields, until it fits.

        Raises:
            TemplateError: the template's own words are longer than the budget.
        """
        budget, query = self.spec.max_tokens, job.known.query
        limits: dict[Origin, int] = {}
        known, job.fits = job.known, 0
        while True:
            profile, context = self._person(query, limits)
            columns = {ref: n for (kind, ref), n in limits.items() if kind == "candidate"}
            candidates = self._lettered(job.shown, job.asked, query.hidden_fields, columns)
            pieces = self._draw(Known(query, [], profile, context, 0), candidates, 0)
            job.draft = Draft(Part(pieces))
            job.n_tokens = self.counter.count([job.draft.text])[0]
            if job.n_tokens <= budget:
                job.known = known
                return self._finish(job, [ref if kind == "candidate" else f"{kind}.{ref}" for kind, ref in limits])
            shown: dict[Origin, str] = {}
            for (kind, ref), stretch in _stretches(pieces):
                # A limit holds for a column of all candidates alike, whoever is asked about.
                origin = ("candidate" if kind == OTHER else kind, ref)
                shown[origin] = max(shown.get(origin, ""), stretch, key=len)
            clipped = _next_to_clip(shown, limits)
            if clipped is None:
                raise TemplateError(
                    f"the template takes {job.n_tokens} tokens by itself, but the budget is {budget}.",
                    where=self._where,
                    fix="Shorten the template or raise max_tokens.",
                )
            value = shown[clipped]
            cost = max(1, self._cost_of(value))
            excess = -(-(job.n_tokens - budget) // len(job.shown))
            keep = len(value) * max(0, cost - excess) // cost
            floor = _MIN_TITLE_CHARS if clipped == ("candidate", TITLE) else 0
            limits[clipped] = max(floor, min(keep, len(value) - 1))

    # ---- room for longer candidates ----------------------------------------------------------------------------------

    def _leave_room(self, jobs: Sequence[Job]) -> None:
        alone = [job for job in jobs if len(job.shown) == 1]
        if self._ending is None or not alone:
            return
        lengths = self._lengths(self._ending, {job.candidates[0] for job in alone})
        for job in alone:
            job.left = max(0, self.candidate_room - lengths.get(job.candidates[0], self.candidate_room))

    @cached_property
    def candidate_room(self) -> int:
        """Tokens that are kept for the candidate and what stands behind it: enough for nearly all items.

        0 where the template does not end with the candidate.
        """
        if self._ending is None:
            return 0
        n_items, fuel = len(self._shelf.ids), self._program.limits.fuel
        looked_at = []
        for idx in np.linspace(0, n_items - 1, min(n_items, _LOOKED_AT)).astype(int).tolist():
            looked_at.append(self._candidate(idx, frozenset()))
            # All of them may cost what one prompt may, and those that cannot be drawn may have cost as much.
            try:
                fuel -= self._tail(self._ending, looked_at[-1]).spent
            except TemplateError:
                fuel -= self._program.limits.fuel // 10
            if fuel < 0:
                break
        lengths = list(self._lengths(self._ending, looked_at).values())
        enough = np.quantile(lengths, _ROOM_FOR, method="inverted_cdf") if lengths else 0
        return min(int(enough), int(_MOST_ROOM * self.spec.max_tokens))

    def _lengths(self, ending: Program, candidates: Iterable[Candidate]) -> dict[Candidate, int]:
        """Tokens from each candidate on, special ones not counted; those that cannot be drawn are missing."""
        found: dict[Candidate, Part] = {}
        for candidate in candidates:
            with suppress(TemplateError):
                found[candidate] = self._tail(ending, candidate)
        new = [part for part in found.values() if part.n_tokens is None]
        for part, n_tokens in zip(new, self.counter.count([f" {part.text}" for part in new]), strict=True):
            part.n_tokens = n_tokens
        return {candidate: (part.n_tokens or 0) - self._n_special for candidate, part in found.items()}

    # ---- where to start the search -----------------------------------------------------------------------------------

    def _estimate(self, job: Job) -> int:
        """Entries that should fit; it only decides where the search begins."""
        room = self.spec.max_tokens - self._around.prompt - job.known.extra - job.left + _LINE
        room -= sum(sum(self._costs(self._shelf.of_idx(idx))) + _LINE for idx in job.shown)
        return max(0, bisect_right(job.known.costs, room) - 1)

    def _costs(self, item: ItemTexts) -> tuple[int, int]:
        """Tokens of the title and of the fields."""
        if item.costs is None:
            title, fields = self.counter.count([item.title, item.fields])
            item.costs = (title - self._n_special, fields - self._n_special)
        return item.costs

    def _cost_of(self, value: str) -> int:
        found = self._value_costs.get(value)
        if found is None:
            if len(self._value_costs) >= _MAX_CACHED:
                self._value_costs.clear()
            found = self._value_costs[value] = self.counter.count([value])[0] - self._n_special
        return found

    def _calibrate(self) -> Around:
        """Measures the template on made-up entries of one-letter titles."""
        bare, full = (ItemTexts(self._shelf, "x", None) for _ in range(2))
        full.fields = "y" if self._shelf.fields else ""
        threshold = self.dataset.like_threshold
        rating = threshold if self.spec.show_ratings else None
        full_entry = HistoryEntry(full, 0, rating, show_day(0.0) if self.spec.show_time else None, None)
        bare_entry = HistoryEntry(bare, 0, None, None, None)
        letter, fields = self._costs(full)
        try:
            shown, counts = self._measure(full_entry)
            shown_bare, least = self._measure(bare_entry)
        except TemplateError:
            # The template may need what only real queries have (a context, a rating); then the search only guesses.
            return Around(prompt=10, entry=4, least=-_NEVER, fields=True)
        uses_fields = "y" in shown
        entry = counts[3] - counts[2]
        least_entry = min(least[2] - least[1], least[3] - least[2], entry)
        # A template that leaves out some entries, or some titles, has no least.
        steady = "x" in shown and "x" in shown_bare and least_entry >= letter
        return Around(
            prompt=counts[2] - 2 * entry - sum(self._costs(self._shelf.of_idx(0))),
            entry=entry - letter - (fields if uses_fields else 0),
            least=least_entry - letter if steady else -_NEVER,
            fields=uses_fields,
        )

    def _measure(self, entry: HistoryEntry) -> tuple[set[str], list[int]]:
        """What is shown of ``entry``, and the tokens of prompts with 0, 1, 2 and 3 of it."""
        empty = Fields({}, self.spec.profile_fields)
        known = Known(Query(""), [entry] * 3, empty, Fields({}), 0)
        drawn = [self._draw(known, (self._candidate(0, frozenset()),), n) for n in range(4)]
        return {stretch for _, stretch in _stretches(drawn[3])}, self.counter.count(["".join(p).strip() for p in drawn])


@lru_cache(maxsize=32)
def _compiled(source: str, where: str) -> tuple[Program, Halves | None]:
    """Compiling takes as long as a hundred prompts, and screens build renderers again and again."""
    sandbox = prompt_sandbox()
    return sandbox.compile(source, where), sandbox.compile_halves(source, ("candidate", "candidates"), where)


def _stretches(pieces: Sequence[str]) -> Iterator[tuple[Origin, str]]:
    """Every marked stretch of an output, with its player."""
    for piece in pieces:
        if type(piece) is Text:
            for a, b, origin in piece.marks:
                yield origin, str.__getitem__(piece, slice(a, b))


def _next_to_clip(shown: Mapping[Origin, str], limits: Limits) -> Origin | None:
    """Whose value to shorten next: the longest of the profile and context, then of the candidate, its title last."""

    def longest(origins: list[Origin]) -> Origin | None:
        return max(origins, key=lambda origin: (len(shown[origin]), origin), default=None)

    person = longest([o for o in shown if o[0] in ("profile", "context")])
    if person is not None:
        return person
    field = longest([o for o in shown if o[0] == "candidate" and o[1] != TITLE])
    if field is not None:
        return field
    title = ("candidate", TITLE)
    return title if len(shown.get(title, "")) > _MIN_TITLE_CHARS and limits.get(title, 9) > _MIN_TITLE_CHARS else None


def _check_columns(field: str, wanted: Sequence[str], columns: Any) -> None:
    known = [str(column) for column in columns]
    for name in wanted:
        if name not in known:
            raise SpecError(
                f"there is no column {name[:80]!r}; known columns are: {', '.join(known) or 'none'}.",
                where=f"prompt.{field}",
                fix="Choose from these.",
            )
