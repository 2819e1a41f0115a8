"""What a render may spend: the meter of the rendering thread."""

from __future__ import annotations

import threading


class Refused(Exception):
    """A template went over a limit or combined things that do not go together; becomes a TemplateError."""


#: Fuel outside a render: our own code is not metered.
UNMETERED = 1 << 60


class Meter(threading.local):
    """What the render of this thread may still spend."""

    fuel: int = UNMETERED
    max_text: int = 0
    max_list: int = 0


METER = Meter()


def charge(amount: int) -> None:
    """Takes ``amount`` from the meter.

    Raises:
        Refused: nothing is left.
    """
    left = METER.fuel - amount
    METER.fuel = left
    if left < 0:
        raise Refused("the template does too much work (loops, lists or texts are too long)")
