"""What the tests of the screens share beside fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]


def open_page(page: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    """The whole app, opened on one of its pages with these query parameters."""
    monkeypatch.setenv("LLMREC_WORKSPACE", str(workspace))
    # Runs are made by the fixtures; a background thread would outlive the test.
    monkeypatch.setattr("llmrec_core.runs.Supervisor.start", lambda self: None)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    app.run()
    for name, value in query.items():
        app.query_params[name] = value
    if page != "home":
        app.switch_page(f"pages/{page}.py")
    app.run()
    return app


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
