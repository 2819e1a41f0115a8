"""What the tests of the screens share beside fixtures."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]


def texts(app: AppTest) -> str:
    """Everything a person can read in plain elements, joined."""
    kinds = (
        app.title,
        app.subheader,
        app.markdown,
        app.caption,
        app.info,
        app.warning,
        app.error,
        app.success,
        app.text,
    )
    return "\n".join(str(element.value) for kind in kinds for element in kind)
