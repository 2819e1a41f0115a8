"""What a person may say about values, and what an import asks when the data itself does not say it."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from llmrec_core.errors import DataError, InputError

TimeUnit = Literal["auto", "s", "ms", "us", "ns", "excel", "order"]
Duplicates = Literal["keep", "last", "mean", "count"]


@dataclass(frozen=True)
class Question:
    """What only a person can know. An answer is the correction ``{id}={option}``.

    Attributes:
        id: the option that answers it, as in ``--map zero=unrated``.
        text: the question, with an example from the data.
        default: the option that holds while nobody answers; None: an import refuses until somebody does.
    """

    id: str
    text: str
    options: tuple[str, ...]
    default: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "options": list(self.options), "default": self.default}


class UnansweredError(DataError):
    """An import that cannot go on before somebody answers; ``question`` lets a screen ask it."""

    def __init__(self, question: Question, where: str, fix: str) -> None:
        super().__init__(question.text, where=where, fix=fix)
        self.question = question


class ValueOptions(BaseModel):
    """How numbers, times and repeated rows are read; "auto" and "ask" leave it to the data.

    Attributes:
        time_unit: unit of numbers that stand for times; ``excel``: days since 1899-12-30; ``order``: no calendar.
        timezone: IANA name for times that name no zone of their own; "": UTC.
        zero: whether a rating of zero is the lowest rating or says that there is none.
        missing_time: rows without a time are refused; or take the time of the row before; or no row keeps a time.
        scale: (low, high) of the ratings where the data does not show all of it.
        duplicates: what becomes of several rows of one user and item (of one part, where data comes already split).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decimal: Literal["auto", "point", "comma"] = "auto"
    day_first: Literal["auto", "yes", "no"] = "auto"
    time_unit: TimeUnit = "auto"
    timezone: str = ""
    zero: Literal["ask", "rating", "unrated"] = "ask"
    missing_time: Literal["refuse", "drop-all", "keep-order"] = "refuse"
    scale: tuple[float, float] | None = None
    duplicates: Duplicates = "keep"

    @field_validator("scale", mode="before")
    @classmethod
    def _bounds(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        low, dots, high = value.replace(",", ".").partition("..")
        try:
            bounds = float(low), float(high)
        except ValueError:
            bounds = (0.0, 0.0)
        if not dots or not -1e6 <= bounds[0] < bounds[1] <= 1e6:
            raise ValueError("a scale is written as LOW..HIGH, as in 1..5")
        return bounds

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value in ("", "UTC"):
            return ""
        try:
            zoneinfo.ZoneInfo(value)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
            raise ValueError("this time zone is unknown; use a name such as Europe/Berlin or Asia/Shanghai") from None
        return value

    @classmethod
    def of(cls, options: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> ValueOptions:
        """The options among the corrections of an import; what else stands there is passed over.

        Raises:
            InputError: a value that the option does not know, naming the option.
        """
        said = {key: value.strip() for key, value in dict(options).items() if key in cls.model_fields}
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = str(fault["loc"][0])
            known = get_args(cls.model_fields[name].annotation)
            message = fault["msg"].removeprefix("Value error, ")
            words = [word for word in known if isinstance(word, str)]
            raise InputError(
                f"{name} cannot be {said.get(name, '')[:60]!r}.",
                where="map",
                fix=f"Use {', '.join(words)}." if words else f"{message[:1].upper()}{message[1:]}.",
            ) from None


DEFAULT = ValueOptions()


def refuse_unanswered(questions: Iterable[Question], where: str) -> None:
    """Raises: UnansweredError for the first question that has no default, naming the options that answer it."""
    for question in questions:
        if question.default is None:
            answers = " or ".join(f"--map {question.id}={option}" for option in question.options)
            raise UnansweredError(question, where, f"Say it with {answers}.")
