"""Makes the sample data: an invented film catalogue, its viewers and their ratings.

Run ``python sample_data/generate.py [FOLDER]``; the same three files come out every time. Only uniform draws of one
seeded generator are used, since NumPy keeps that stream stable. Every title, sentence, place and person is made up
here from the word lists below.

What lies behind the ratings, so that models have something to find:
- taste: each viewer likes two or three genres and one mood; both show in the descriptions, so text predicts likes;
- sequence: viewers move from phase to phase (a run of one genre and mood), and a film's next part tends to follow it;
- company: two circles of viewers share a liking for certain films that no text betrays; only co-visits show it;
- popularity: a long tail; quality: some films are better than others; and noise in every choice and rating.
"""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20250117
N_ITEMS, N_COLD, N_USERS, N_RATINGS = 400, 25, 300, 12_000
N_SERIES, SERIES_PARTS = 36, 3
MIN_RATINGS, MAX_RATINGS = 10, 120
FIRST_DAY, N_DAYS = datetime(2023, 1, 1, tzinfo=UTC), 730

# genre: (title nouns, who, what happens)
GENRES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "Mystery": (
        ["Ledger", "Alibi", "Keyhole", "Witness", "Cipher", "Verdict", "Footprint", "Locked Drawer"],
        ["retired inspector", "night-shift detective", "court stenographer", "amateur sleuth"],
        ["must find out who forged a dead man's will", "follows a trail of blackmail letters",
         "reopens a murder case that everyone wants closed", "notices that one witness describes the wrong clock",
         "has until dawn to learn which guest is the poisoner"],
    ),
    "Space": (
        ["Orbit", "Airlock", "Comet", "Star Chart", "Antenna", "Far Moon", "Engine Room", "Vacuum"],
        ["cargo pilot", "station engineer", "young navigator", "homesick astronomer"],
        ["answers a distress call from a ship that was scrapped long ago",
         "steers a failing starship between two moons", "finds a second crew asleep behind the reactor",
         "has to repair the oxygen plant before the next eclipse", "maps a planet that refuses to stay in orbit"],
    ),
    "Seafaring": (
        ["Tide", "Anchor", "Lighthouse", "Salt Road", "Harbour Bell", "Reef", "Keel", "Undertow"],
        ["ferry captain", "pearl diver", "shipwright's daughter", "deckhand"],
        ["sails a leaking schooner through the autumn storms", "searches the reef for a wreck nobody insured",
         "is the last to leave a sinking whaler", "smuggles a printing press past the coast guard",
         "learns to read the currents from an exiled admiral"],
    ),
    "Ghost Story": (
        ["Cellar", "Candle", "Hollow House", "Mirror", "Graveyard Shift", "Whisper", "Attic", "Empty Cradle"],
        ["widowed caretaker", "skeptical priest", "piano tuner", "boarding-school girl"],
        ["hears footsteps in a wing that burned down", "inherits a house whose mirrors are a minute late",
         "is visited every night by the previous tenant", "digs up a coffin full of wedding letters",
         "promises a drowned child to keep the lamp lit"],
    ),
    "Romance": (
        ["Letter", "Waltz", "Orchard", "Second Spring", "Love Song", "Wedding Guest", "Balcony", "Promise"],
        ["florist", "widowed baker", "letter carrier", "shy bookbinder"],
        ["falls for the stranger who returns every book unread", "writes love letters on behalf of a rival",
         "meets an old sweetheart at the wrong wedding", "agrees to a pretended engagement for one summer",
         "shares an umbrella and, a year later, a kitchen"],
    ),
    "Comedy": (
        ["Nuisance", "Landlord", "Goose", "Surprise Party", "Wrong Suitcase", "Moustache", "Buffet", "Mix-Up"],
        ["hopeless waiter", "overconfident mayor", "unlucky magician", "talkative plumber"],
        ["accidentally sells the town hall", "hides forty geese from a food inspector",
         "pretends to be a famous chef and gets hired", "wins a donkey and the hatred of the neighbours",
         "swaps suitcases with a very patient gangster"],
    ),
    "Fantasy": (
        ["Dragon's Tax", "Clockwork Crown", "Thorn Gate", "Spell", "Moth King", "Riddle", "Glass Forest", "Wand"],
        ["apprentice wizard", "goblin notary", "exiled princess", "hedge witch"],
        ["bargains with a dragon over unpaid rent", "must carry a sleeping spell across the glass forest",
         "steals a crown that ticks", "is chosen by a sword that would rather garden",
         "opens a gate that the old kings had bricked up"],
    ),
    "Documentary": (
        ["Glacier", "Beehive", "Salt Marsh", "Year of Owls", "Slow River", "Field Notes", "Bread", "Migration"],
        ["field biologist", "beekeeper", "mountain ranger", "glacier guide"],
        ["counts the owls of one valley through four seasons", "follows a river from spring to delta on foot",
         "records how a beehive survives a hard winter", "films the last herd that still crosses the pass",
         "shows where the bread of a whole city comes from"],
    ),
    "Music": (
        ["Encore", "Broken Violin", "Choir", "B-Side", "Drummer", "Rehearsal", "Accordion", "Overture"],
        ["street violinist", "choir mistress", "deaf composer", "wedding drummer"],
        ["puts together a band of night watchmen", "has one rehearsal left before the competition",
         "hears a forgotten melody in the noise of a tram", "returns to the stage after ten silent years",
         "records an album in an abandoned swimming pool"],
    ),
    "Sports": (
        ["Underdogs", "Finish Line", "Second Half", "Goalkeeper", "Long Jump", "Last Lap", "Ring", "Relay"],
        ["aging goalkeeper", "barefoot runner", "stubborn coach", "rowing champion"],
        ["trains a team that has never won a match", "comes back from injury for one last season",
         "runs the mountain marathon against a former friend", "must beat the champion who taught every trick",
         "turns a factory squad into cup finalists"],
    ),
}  # fmt: skip

# mood: (title words, closing sentences)
MOODS: dict[str, tuple[list[str], list[str]]] = {
    "cosy": (
        ["Gentle", "Sunday", "Warm", "Little", "Honeyed", "Fireside"],
        ["A warm, unhurried story with tea on every table.", "Kind people, soft light and a happy ending.",
         "Best watched under a blanket: gentle, homely and good-natured.",
         "Nothing terrible happens, and that is its charm."],
    ),
    "tense": (
        ["Silent", "Sharp", "Restless", "Final", "Cold", "Narrow"],
        ["A nerve-racking thriller that never lets go.", "Every minute tightens the noose.",
         "Tense and breathless up to the last frame.", "Nobody can be trusted, and the clock is running."],
    ),
    "melancholic": (
        ["Fading", "Grey", "Lost", "Autumn", "Distant", "Quiet"],
        ["A sad and tender film about what cannot be kept.", "Slow, wistful and full of rain.",
         "It mourns gently for a life not lived.", "A quiet elegy that stays for days."],
    ),
    "playful": (
        ["Crooked", "Merry", "Upside-Down", "Dizzy", "Cheeky", "Tumbling"],
        ["Full of pranks, chases and silly hats.", "A mischievous romp with a wink in every scene.",
         "Light-footed, absurd and very funny.", "Everyone lies, everyone dances, nobody learns a thing."],
    ),
    "epic": (
        ["Great", "Thousand-Mile", "Iron", "Burning", "Boundless", "Towering"],
        ["A sweeping saga over three generations.", "Vast landscapes, large armies and larger hearts.",
         "Heroic, thunderous and made for the big screen.", "A monumental tale of sacrifice and glory."],
    ),
}  # fmt: skip

TOWNS = (
    "Pellwick", "Orlava Bay", "Marrowfield", "Tamsin Cross", "Vell", "Quarrytown", "Lower Anselm", "Dunmarrow",
    "Sorrel Island", "Kettlebridge", "Brackwater", "Hollin", "Upper Farrow", "Nettlecombe", "Saint Orrin",
    "Graywhistle",
)  # fmt: skip
FIRST_NAMES = (
    "Odalie", "Bram", "Ilse", "Corvin", "Maren", "Tobiah", "Juniper", "Aldo", "Petra", "Wendel", "Sunniva", "Kasimir",
    "Nell", "Ravi", "Linnea", "Otto", "Yara", "Emeric", "Tove", "Basil",
)  # fmt: skip
LAST_NAMES = (
    "Marsh", "Quill", "Vandermeer", "Thistle", "Okoro", "Penhallow", "Sato", "Grieve", "Lindqvist", "Farrow",
    "Castellan", "Brandt", "Moreau", "Ashby", "Pell", "Novak",
)  # fmt: skip
AGE_GROUPS = ("16-24", "25-34", "35-49", "50-64", "65+")
OCCUPATIONS = (
    "teacher", "nurse", "carpenter", "student", "engineer", "librarian", "cook", "retired", "tram driver", "accountant",
)  # fmt: skip
PARTS = ("", ": Part Two", ": Part Three")


class Draw:
    """Draws made of uniform numbers alone."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def unit(self, *shape: int) -> Any:
        return self._rng.random(shape) if shape else float(self._rng.random())

    def normal(self, *shape: int) -> Any:
        """Standard normal by Box and Muller's transform."""
        return np.sqrt(-2 * np.log1p(-self.unit(*shape))) * np.cos(2 * np.pi * self.unit(*shape))

    def pick(self, options: Any) -> Any:
        return options[int(self.unit() * len(options))]

    def weighted(self, weights: np.ndarray) -> int:
        total = np.cumsum(weights)
        return int(np.searchsorted(total, self.unit() * total[-1], side="right"))

    def order(self, n: int) -> np.ndarray:
        """A random permutation."""
        return np.argsort(self.unit(n), kind="stable")


def make_items(draw: Draw) -> list[dict[str, Any]]:
    """The catalogue; each film also carries what the ratings are made from (genre, second, mood, series, part)."""
    genres, moods = list(GENRES), list(MOODS)
    films: list[dict[str, Any]] = []
    titles: set[str] = set()
    number = 0
    while len(films) < N_ITEMS:
        genre, mood = genres[number % len(genres)], draw.pick(moods)
        number += 1
        second = draw.pick([g for g in genres if g != genre]) if draw.unit() < 0.35 else ""
        nouns, roles, plots = GENRES[genre]
        words, closings = MOODS[mood]
        town, hero = draw.pick(TOWNS), f"{draw.pick(FIRST_NAMES)} {draw.pick(LAST_NAMES)}"
        noun, word = draw.pick(nouns), draw.pick(words)
        forms = (f"The {word} {noun}", f"The {noun} of {town}", f"{hero.split()[0]} and the {noun}", f"{word} {noun}")
        title = draw.pick(forms)
        if title in titles:
            continue
        titles.add(title)
        in_series = number <= N_SERIES
        role, first_year = draw.pick(roles), 1975 + int(48 * draw.unit() ** 0.6)
        for part in range(SERIES_PARTS if in_series else 1):
            if len(films) == N_ITEMS:
                break
            plot, closing = draw.pick(plots), draw.pick(closings)
            article = "An" if role[0] in "aeiou" else "A"
            lead = f"{article} {role}, {hero}, {plot} in {town}."
            if part:
                lead = f"{hero} of {town} is back: the {role} {plot}."
            films.append(
                {
                    "title": title + PARTS[part],
                    "description": f"{lead} {closing}" if draw.unit() < 0.85 else lead,
                    "category": f"{genre}, {second}" if second else genre,
                    "year": min(2024, first_year + 2 * part),
                    "genre": genres.index(genre),
                    "second": genres.index(second) if second else -1,
                    "mood": moods.index(mood),
                    "series": number if in_series else -number,
                    "part": part,
                }
            )
    # Ids say nothing about genre, series or popularity.
    films = [films[i] for i in draw.order(N_ITEMS)]
    for i, film in enumerate(films, start=1):
        film["item_id"] = f"f{i:03d}"
    return films


def make_users(draw: Draw) -> list[dict[str, Any]]:
    """Viewers with a profile; the favourite mood and, loosely, the age group go with their taste."""
    moods = list(MOODS)
    users = []
    for i in range(1, N_USERS + 1):
        age, mood = draw.weighted(np.array([2.0, 3.0, 3.0, 2.0, 1.0])), int(draw.unit() * len(moods))
        users.append(
            {
                "user_id": f"u{i:03d}",
                "age_group": AGE_GROUPS[age],
                "city": draw.pick(TOWNS),
                "occupation": "retired" if age == 4 and draw.unit() < 0.8 else draw.pick(OCCUPATIONS),
                "favourite_mood": moods[mood],
                "age": age,
                "mood": mood,
            }
        )
    return users


def make_ratings(
    draw: Draw, items: list[dict[str, Any]], users: list[dict[str, Any]]
) -> list[tuple[str, str, int, str]]:
    """(user, item, rating, time) by time."""
    n_genres = len(GENRES)
    genre, second, mood, series, part = (
        np.array([film[key] for film in items]) for key in ("genre", "second", "mood", "series", "part")
    )
    quality = 0.5 * draw.normal(N_ITEMS)
    # Zipf's law over a random order, helped by quality: the long tail.
    appeal = -0.7 * np.log(1.0 + draw.order(N_ITEMS)) + 0.5 * quality
    cold = draw.order(N_ITEMS)[:N_COLD]
    appeal[cold] = -np.inf
    for i in cold:
        items[i]["year"] = 2025
    #: Each film belongs to one of ten circles at random; a viewer frequents two. No text tells.
    circle = (10 * draw.unit(N_ITEMS)).astype(int)
    activity = np.exp(0.75 * draw.normal(N_USERS))
    counts = np.clip(activity * (N_RATINGS / activity.sum()), MIN_RATINGS, MAX_RATINGS).astype(int)
    for i in draw.order(N_USERS):
        missing = N_RATINGS - int(counts.sum())
        if missing == 0:
            break
        counts[i] = np.clip(counts[i] + missing, MIN_RATINGS, MAX_RATINGS)
    rows: list[tuple[datetime, str, str, int]] = []
    for u, user in enumerate(users):
        taste = 0.35 * draw.normal(n_genres)
        loved = draw.order(n_genres)[: 2 + int(2 * draw.unit())]
        taste[loved] += 1.5
        taste[draw.order(n_genres)[:2]] -= 0.9
        taste[(2 * user["age"]) % n_genres] += 0.5
        liked_mood = np.where(mood == user["mood"], 1.0, -0.2)
        affinity = taste[genre] + np.where(second >= 0, 0.5 * taste[second], 0.0) + liked_mood
        circles = draw.order(10)[:2]
        in_circle = np.isin(circle, circles)
        severity = 0.35 * draw.normal()
        seen = np.zeros(N_ITEMS, bool)
        phase, phase_mood, last_series, last_part = int(draw.pick(loved)), user["mood"], 0, 0
        start = int(draw.unit() ** 0.8 * (N_DAYS - 120))
        end = start + 60 + int(draw.unit() * (N_DAYS - start - 61))
        moments = np.sort(start + (end - start) * draw.unit(int(counts[u])))
        for moment in moments.tolist():
            if draw.unit() < 0.12:
                # A new phase: mostly a loved genre and mood, at times something else.
                phase = int(draw.pick(loved)) if draw.unit() < 0.75 else int(draw.unit() * n_genres)
                phase_mood = user["mood"] if draw.unit() < 0.5 else int(draw.unit() * len(MOODS))
            following = (series == last_series) & (part == last_part + 1)
            in_phase = (genre == phase) * (3.0 + 1.6 * (mood == phase_mood))
            pull = appeal + affinity + 0.8 * in_circle + in_phase + 4.0 * following
            pull = np.where(seen, -np.inf, pull)
            chosen = draw.weighted(np.exp(pull - pull.max()))
            seen[chosen] = True
            last_series, last_part = int(series[chosen]), int(part[chosen])
            score = 2.75 + 0.65 * affinity[chosen] + 0.5 * quality[chosen] + 0.25 * in_circle[chosen] - severity
            rating = int(np.clip(np.floor(score + 0.65 * draw.normal() + 0.5), 1, 5))
            when = (FIRST_DAY + timedelta(days=moment)).replace(microsecond=0)
            rows.append((when, user["user_id"], items[chosen]["item_id"], rating))
    rows.sort(key=lambda row: row[:3])
    return [(user_id, item_id, rating, f"{when:%Y-%m-%dT%H:%M:%SZ}") for when, user_id, item_id, rating in rows]


def write(path: Path, columns: tuple[str, ...], rows: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def generate(folder: Path) -> None:
    """Writes items.csv, users.csv and interactions.csv into ``folder``."""
    draw = Draw(SEED)
    items, users = make_items(draw), make_users(draw)
    ratings = make_ratings(draw, items, users)
    columns: tuple[str, ...] = ("item_id", "title", "description", "category", "year")
    write(folder / "items.csv", columns, ([film[c] for c in columns] for film in items))
    columns = ("user_id", "age_group", "city", "occupation", "favourite_mood")
    write(folder / "users.csv", columns, ([user[c] for c in columns] for user in users))
    write(folder / "interactions.csv", ("user_id", "item_id", "rating", "timestamp"), ratings)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
