"""Every screen on an empty workspace says what to do next; bad links and bad input are told in words."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from page_helpers import ROOT, texts

PAGES = ("home", "data", "prompts", "finetune", "rankings", "metrics", "explain", "settings")
_NEXT = {
    "home": "No dataset yet",
    "data": "No dataset yet",
    "prompts": "A preview needs data",
    "finetune": "No data to learn from yet",
    "rankings": "Nothing to rank yet",
    "metrics": "Nothing to measure yet",
    "explain": "Nothing to explain yet",
    "settings": "all-MiniLM-L6-v2",
}


@pytest.mark.parametrize("page", PAGES)
def test_says_what_to_do_next(empty, page):
    app = empty(page)
    assert not app.exception
    assert _NEXT[page].replace("-", "\\-") in texts(app) or _NEXT[page] in texts(app)
    assert len(app.title) == 1


def test_an_unknown_run_in_a_link_is_told_in_words(empty):
    app = empty("finetune", run="20200101-000000-zzzzz")
    assert not app.exception
    assert "There is no run" in app.error[0].value


def test_a_run_id_that_is_a_path_is_refused(empty, tmp_path):
    app = empty("finetune", run="../../etc")
    assert not app.exception
    assert "cannot be used as a run name" in app.error[0].value


def test_an_unsound_template_is_told_at_the_editor(empty):
    app = empty("prompts")
    app.text_area(key="prompt_source").set_value("{{ candidate.title }} {% if %}").run()
    assert not app.exception
    assert len(app.error) == 1
    assert app.button(key="prompt_save").disabled
    app.text_area(key="prompt_source").set_value("{{ ''.__class__ }} {{ candidate.title }}").run()
    assert not app.exception
    assert len(app.error) == 1


def test_a_template_is_saved_as_versions_with_a_diff(empty):
    app = empty("prompts")
    app.text_area(key="prompt_source").set_value("First {{ candidate.title }}").run()
    app.text_input(key="prompt_name_question").set_value("mine").run()
    app.button(key="prompt_save").click().run()
    assert not app.exception
    assert app.selectbox(key="prompt_template").value == "mine"
    app.text_area(key="prompt_source").set_value("Second {{ candidate.title }}").run()
    app.button(key="prompt_save").click().run()
    assert app.selectbox(key="diff_new_mine_2").value == 2
    assert "-First {{ candidate.title }}" in app.code[0].value
    app.button(key="version_edit").click().run()
    assert app.text_area(key="prompt_source").value == "First {{ candidate.title }}"


def test_saving_over_a_starter_is_refused(empty):
    app = empty("prompts")
    app.text_input(key="prompt_name_question").set_value("question").run()
    app.button(key="prompt_save").click().run()
    assert not app.exception
    assert "starter" in app.error[0].value


def test_an_unknown_model_of_the_hub_is_refused(empty):
    app = empty("settings")
    app.text_input(key="hub_name").set_value("x; touch pwned").run()
    app.button(key="fetch_hub").click().run()
    assert not app.exception
    assert "Unknown model" in app.error[0].value


def test_no_screen_loads_pytorch(tmp_path):
    """All pages run in a process of their own; PyTorch and its kin must not come with them."""
    code = (
        "import sys, logging\n"
        "from streamlit.testing.v1 import AppTest\n"
        "app = AppTest.from_file('app.py', default_timeout=120).run()\n"
        f"for page in {PAGES!r}:\n"
        "    if page != 'home': app.switch_page(f'pages/{page}.py')\n"
        "    app.run()\n"
        "    assert not app.exception, (page, app.exception[0].value)\n"
        "print(sorted({'torch', 'transformers', 'shap', 'peft', 'accelerate'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "LLMREC_WORKSPACE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert answer.stdout.strip().splitlines()[-1] == "[]"
