"""The search for the longest history that fits a prompt: what one query offers, and how far one prompt has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmrec_core.contracts import Query
from llmrec_core.prompts._drafts import Draft, Part
from llmrec_core.prompts._items import Candidate, HistoryEntry
from llmrec_core.prompts._operations import Fields


@dataclass(frozen=True)
class Around:
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


class Known:
    """What one query offers, prepared once for all its candidates."""

    __slots__ = ("context", "costs", "entries", "extra", "heads", "least", "profile", "query")

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
        #: History entries -> what a template prints of them before it comes to the candidate.
        self.heads: dict[int, Part] = {}


class Job:
    """The search for one prompt: the newest ``fits`` entries fit (-1: not known), ``too_many`` do not."""

    __slots__ = ("asked", "candidates", "draft", "fits", "known", "left", "n_tokens", "probe", "shown", "too_many")

    def __init__(self, known: Known, shown: Sequence[int], asked: int | None, candidates: Sequence[Candidate]) -> None:
        self.known = known
        #: Items of the catalogue, and which of them is asked about (None: all).
        self.shown = shown
        self.asked = asked
        self.candidates = candidates
        self.fits = -1
        self.too_many = len(known.entries) + 1
        #: Entries to try next.
        self.probe = 0
        #: Tokens that it leaves to longer candidates.
        self.left = 0
        self.draft: Draft | None = None
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
