"""Queries and candidates become prompts inside a token budget, with a span for every piece that came from a player.

The budget is kept by leaving out the oldest history first. How many entries fit is found by trying: an estimate from
counted titles says where to start, and the answer is the longest history that fits while one entry more does not.
"""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmrec_core.contracts import TITLE, Query, RenderedPrompt, Span, SpanKind
from llmrec_core.errors import InputError, SpecError, TemplateError
from llmrec_core.prompts._items import (
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
from llmrec_core.prompts._text import Origin, Text
from llmrec_core.prompts.sandbox import Program
from llmrec_core.prompts.templates import prompt_sandbox, template_source
from llmrec_core.prompts.tokens import Counter
from llmrec_core.specs import PromptSpec

if TYPE_CHECKING:
    from llmrec_core.data import Dataset

_MAX_CACHED = 100_000
#: The candidate's title is never clipped below this many characters.
_MIN_TITLE_CHARS = 8
#: (kind, ref) -> most characters of that value.
Limits = Mapping[Origin, int]


#: Prompts worked on at a time.
_BLOCK = 2_048
#: More tokens than any budget.
_NEVER = 1_000_000


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


@dataclass(frozen=True)
class _Around:
    """Tokens that a template spends besides titles and fields; they only steer the search for the longest history.

    Attributes:
        prompt: around the candidate, without history.
        entry: around one ordinary history entry.
        least: around an entry of which nothing but the title is known.
        fields: whether entries show their fields.
    """

    prompt: int
    entry: int
    least: int
    fields: bool


class _Known:
    """What one query offers, prepared once for all its candidates."""

    __slots__ = ("context", "costs", "entries", "extra", "least", "profile", "query")

    def __init__(self, query: Query, entries: list[HistoryEntry], profile: Fields, context: Fields, extra: int) -> None:
        self.query = query
        self.entries = entries
        self.profile = profile
        self.context = context
        #: Estimated tokens of profile and context.
        self.extra = extra
        #: Estimated tokens of the newest 0, 1, 2 ... entries.
        self.costs: list[int] = [0]
        #: The least that the newest, second-newest ... entry can take.
        self.least: list[int] = []


class _Job:
    """The search for one prompt: the newest ``fits`` entries fit (-1: not known), ``too_many`` do not."""

    __slots__ = ("candidate", "fits", "idx", "known", "n_tokens", "pieces", "probe", "text", "too_many")

    def __init__(self, known: _Known, idx: int, candidate: Candidate, probe: int) -> None:
        self.known = known
        self.idx = idx
        self.candidate = candidate
        self.fits = -1
        self.too_many = len(known.entries) + 1
        self.probe = probe
        self.pieces: list[str] = []
        self.text = ""
        self.n_tokens = 0

    def learn(self, fits: bool, room: int) -> bool:
        """Takes in how the probe went and chooses the next; True when the search is over.

        The first steps go one by one from the estimate, which is seldom far off; then the range is halved.

        Args:
            fits: whether the probe was inside the budget.
            room: tokens that it left; when one entry more takes at least as many, that one need not be tried.
        """
        probed = self.probe
        near = self.fits < 0 and self.too_many > len(self.known.entries)
        if fits:
            self.fits = probed
            if probed < len(self.known.least) and self.known.least[probed] > room:
                self.too_many = probed + 1
        else:
            self.too_many = probed
        if self.too_many - self.fits <= 1:
            return True
        if near:
            self.probe = probed + 1 if fits else probed - 1
        else:
            self.probe = (self.fits + self.too_many) // 2
        return False


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
        self._program = _compiled(self.source, self._where)
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
                for prompt in self._render_block(pairs[start : start + _BLOCK])
            ]

    def _render_block(self, pairs: Sequence[tuple[Query, int]]) -> list[RenderedPrompt]:
        budget = self.spec.max_tokens
        known: dict[int, _Known] = {}
        jobs = []
        for query, item_idx in pairs:
            idx = int(item_idx)
            if not 0 <= idx < len(self._shelf.ids):
                raise InputError(
                    f"item number {idx} is outside the catalogue of {len(self._shelf.ids)} items.", where="item_idx"
                )
            prepared = known.get(id(query))
            if prepared is None:
                prepared = known[id(query)] = self._prepare(query)
            jobs.append(_Job(prepared, idx, self._candidate(idx, query.hidden_fields), self._estimate(prepared, idx)))
        searching = jobs
        while searching:
            drawn = [self._draw(job.known, job.candidate, job.probe) for job in searching]
            texts = ["".join(pieces).strip() for pieces in drawn]
            still = []
            for job, pieces, text, n_tokens in zip(searching, drawn, texts, self.counter.count(texts), strict=True):
                fits = n_tokens <= budget
                if fits:
                    job.pieces, job.text, job.n_tokens = pieces, text, n_tokens
                if not job.learn(fits, budget - n_tokens):
                    still.append(job)
            searching = still
        return [self._finish(job) if job.fits >= 0 else self._squeeze(job) for job in jobs]

    # ---- preparing ---------------------------------------------------------------------------------------------------

    def _prepare(self, query: Query) -> _Known:
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
        known = _Known(query, entries, profile, context, sum(self._cost_of(value) + 3 for value in shown))
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

    def _candidate(self, idx: int, hidden: frozenset[str]) -> Candidate:
        key = (idx, hidden)
        found = self._candidates.get(key)
        if found is None:
            if len(self._candidates) >= _MAX_CACHED:
                self._candidates.clear()
            found = self._candidates[key] = Candidate(self._shelf.of_idx(idx), hidden)
        return found

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def _draw(self, known: _Known, candidate: Candidate, n_history: int) -> list[str]:
        """The output with the newest ``n_history`` entries."""
        entries = known.entries[len(known.entries) - n_history :]
        reads = self._program.reads
        variables: dict[str, Any] = {
            "history": entries,
            "profile": known.profile,
            "context": known.context,
            "candidate": candidate,
            "n_history": len(known.query.history),
        }
        if "liked" in reads:
            variables["liked"] = [entry for entry in entries if entry.liked]
        if "disliked" in reads:
            variables["disliked"] = [entry for entry in entries if entry.liked is False]
        if "neutral" in reads:
            variables["neutral"] = [entry for entry in entries if entry.liked is None]
        return self._program.pieces(variables)

    def _finish(self, job: _Job, clipped: Sequence[str] = ()) -> RenderedPrompt:
        text, whole = job.text, "".join(job.pieces)
        position = -(len(whole) - len(whole.lstrip()))
        end = len(text)
        spans = []
        shown = set()
        for piece in job.pieces:
            if type(piece) is Text:
                for a, b, (kind, ref) in piece.marks:
                    start, stop = max(0, a + position), min(b + position, end)
                    if start < stop:
                        spans.append(Span(start, stop, _KINDS[kind], ref))
                        if kind == "candidate":
                            shown.add(ref)
            position += len(piece)
        item = self._shelf.of_idx(job.idx)
        cut = [column for column in sorted(shown) if item.is_clipped(column) and column not in clipped]
        dropped = len(job.known.entries) - job.fits
        return RenderedPrompt(text, tuple(spans), job.n_tokens, dropped, (*clipped, *cut))

    def _squeeze(self, job: _Job) -> RenderedPrompt:
        """Too long even without history: clips the profile, then the candidate's longest fields, until it fits.

        Raises:
            TemplateError: the template's own words are longer than the budget.
        """
        budget, query, item = self.spec.max_tokens, job.known.query, self._shelf.of_idx(job.idx)
        limits: dict[Origin, int] = {}
        known, job.fits = job.known, 0
        while True:
            profile, context = self._person(query, limits)
            candidate = Candidate(item, query.hidden_fields, {r: n for (k, r), n in limits.items() if k == "candidate"})
            job.pieces = self._draw(_Known(query, [], profile, context, 0), candidate, 0)
            job.text = "".join(job.pieces).strip()
            job.n_tokens = self.counter.count([job.text])[0]
            if job.n_tokens <= budget:
                job.known = known
                return self._finish(job, [ref if kind == "candidate" else f"{kind}.{ref}" for kind, ref in limits])
            shown: dict[Origin, str] = {}
            for origin, stretch in _stretches(job.pieces):
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
            keep = len(value) * max(0, cost - (job.n_tokens - budget)) // cost
            floor = _MIN_TITLE_CHARS if clipped == ("candidate", TITLE) else 0
            limits[clipped] = max(floor, min(keep, len(value) - 1))

    # ---- where to start the search -----------------------------------------------------------------------------------

    def _estimate(self, known: _Known, idx: int) -> int:
        """Entries that should fit; it only decides where the search begins."""
        room = self.spec.max_tokens - self._around.prompt - known.extra - sum(self._costs(self._shelf.of_idx(idx)))
        return max(0, bisect_right(known.costs, room) - 1)

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

    def _calibrate(self) -> _Around:
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
            return _Around(prompt=10, entry=4, least=-_NEVER, fields=True)
        uses_fields = "y" in shown
        entry = counts[3] - counts[2]
        least_entry = min(least[2] - least[1], least[3] - least[2], entry)
        # A template that leaves out some entries, or some titles, has no least.
        steady = "x" in shown and "x" in shown_bare and least_entry >= letter
        return _Around(
            prompt=counts[2] - 2 * entry - sum(self._costs(self._shelf.of_idx(0))),
            entry=entry - letter - (fields if uses_fields else 0),
            least=least_entry - letter if steady else -_NEVER,
            fields=uses_fields,
        )

    def _measure(self, entry: HistoryEntry) -> tuple[set[str], list[int]]:
        """What is shown of ``entry``, and the tokens of prompts with 0, 1, 2 and 3 of it."""
        empty = Fields({}, self.spec.profile_fields)
        known = _Known(Query(""), [entry] * 3, empty, Fields({}), 0)
        drawn = [self._draw(known, self._candidate(0, frozenset()), n) for n in range(4)]
        return {stretch for _, stretch in _stretches(drawn[3])}, self.counter.count(["".join(p).strip() for p in drawn])


_KINDS: Mapping[str, SpanKind] = {
    "history": "history",
    "profile": "profile",
    "context": "context",
    "candidate": "candidate",
}


@lru_cache(maxsize=32)
def _compiled(source: str, where: str) -> Program:
    """Compiling takes as long as a hundred prompts, and screens build renderers again and again."""
    return prompt_sandbox().compile(source, where)


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
