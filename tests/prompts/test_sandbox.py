"""The sandbox: what it offers works, what it does not is refused with the line, and nothing runs long or grows."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.errors import TemplateError
from llmrec_core.prompts._operations import Fields
from llmrec_core.prompts._text import Number, Text
from llmrec_core.prompts.sandbox import Limits, Sandbox

TITLE = ("candidate", "title")
HERE = Path(__file__).parent


def render(source: str, **variables: object) -> Text:
    return Sandbox(tuple(variables)).compile(source).render(variables)


def shown(text: Text) -> list[tuple[str, str]]:
    return [(str.__getitem__(text, slice(a, b)), origin[1]) for a, b, origin in text.marks]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space through /proc and setrlimit")
def test_hostile_templates_are_refused_in_time_and_memory() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "hostile_templates.py")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=HERE.parents[1],
        env={"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    took = json.loads(done.stdout)
    assert len(took) > 60
    assert {name: what for name, (_, what) in took.items() if not what.startswith("refused")} == {}
    assert {name: seconds for name, (seconds, _) in took.items() if seconds > 2} == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("one\n{{ nothing }}", ["line 2", "'nothing'", "known are x"]),
        ("one\n\n{{ x.colour }}", ["line 3", "'colour'"]),
        ("{% if x %}", ["line 1", "endif"]),
        ("a\n{% for i in x %}\n{{ 1 / 0 }}\n{% endfor %}", ["line 3", "zero"]),
        ("{{ x|center(9) }}", ["line 1", "'center'", "upper"]),
        ("{{ x is sameas(x) }}", ["'sameas'", "defined"]),
        ("{% include 'a' %}", ["includes"]),
        ("{{ x.format() }}", ["'format'", "cannot be called"]),
        ("{{ [1] }}", ["a list", "join"]),
        ("{{ x + 1 }}", ["'+'", "a text and a number", "~"]),
        ("{% for a in x %}" * 4 + "{% endfor %}" * 4, ["line 1", "more than 3 deep"]),
        ("x" * 20_001, ["20,001", "20,000"]),
        ("{{ 'a' * 99999 }}", ["64,000"]),
    ],
)
def test_refusals_say_where_and_what(source: str, said: list[str]) -> None:
    with pytest.raises(TemplateError) as refused:
        render(source, x=Text.of("Heat", TITLE))
    assert refused.value.exit_code == 2
    for part in said:
        assert part in str(refused.value)


def test_missing_fields_name_the_known_ones() -> None:
    with pytest.raises(TemplateError, match=r"'year'; known fields are: age, job"):
        render("{{ p.year }}", p=Fields({"age": "24"}, ("age", "job")))


@pytest.mark.parametrize(
    ("source", "expected", "players"),
    [
        ("{{ x|upper }}!", "HEAT & LIGHT!", ["HEAT & LIGHT"]),
        ("{{ x|lower|title }}", "Heat & Light", ["Heat & Light"]),
        ("{{ '<' ~ x ~ '>' }}", "<Heat & light>", ["Heat & light"]),
        ("{{ '<' + x + '>' }}", "<Heat & light>", ["Heat & light"]),
        ("{{ x[:4] }}{{ x[5] }}", "Heat&", ["Heat", "&"]),
        ("{{ x[::-1] }}", "thgil & taeH", list("thgil & taeH")),
        ("{{ x|truncate(8) }}", "Heat &…", ["Heat &"]),
        ("{{ x|truncate(6, true, '') }}", "Heat &", ["Heat &"]),
        ("{{ x|replace('&', 'and') }}", "Heat and light", ["Heat and light"]),
        ("{{ x.split(' & ')|join('/') }}", "Heat/light", ["Heat", "light"]),
        ("{{ x.split()|last }}", "light", ["light"]),
        ("{{ [x, 'b']|join(', ') }}", "Heat & light, b", ["Heat & light"]),
        ("{{ x * 2 }}", "Heat & lightHeat & light", ["Heat & light"] * 2),
        ("{% set y = x %}{{ y|default('z') }}", "Heat & light", ["Heat & light"]),
        ("{{ x if x == 'Heat & light' else 'no' }}", "Heat & light", ["Heat & light"]),
        ("{{ (' ' ~ x ~ ' ')|trim }}", "Heat & light", ["Heat & light"]),
        ("{% for c in x[:2] %}{{ c }}-{% endfor %}", "H-e-", ["H", "e"]),
        ("{{ x|reverse|length }} {{ x.startswith('He') }} {{ 'lig' in x }}", "12 yes yes", []),
    ],
)
def test_operations_keep_the_player(source: str, expected: str, players: list[str]) -> None:
    text = render(source, x=Text.of("Heat & light", TITLE))
    assert str.__str__(text) == expected
    assert [piece for piece, _ in shown(text)] == players


def test_numbers_read_well_and_keep_the_player() -> None:
    text = render("{{ a }} {{ b }} {{ a > 3 }} {{ a|int + 1 }} {{ a / b }}", a=Number(4.0, TITLE), b=Number(2.5, TITLE))
    assert text == "4 2.5 yes 5 1.6"
    assert [piece for piece, _ in shown(text)] == ["4", "2.5", "5", "1.6"]


def test_lists_and_mappings() -> None:
    people = [Fields({"n": "A", "age": 3}), Fields({"n": "B", "age": 1}), Fields({"n": "C", "age": None})]
    assert render("{{ p|map(attribute='n')|join('+') }}", p=people) == "A+B+C"
    assert render("{{ p|selectattr('age')|sort(attribute='age')|map(attribute='n')|join }}", p=people) == "BA"
    assert render("{{ p|selectattr('age', 'gt', 2)|map(attribute='n')|join }}", p=people[:2]) == "A"
    assert render("{{ p|rejectattr('age', 'none')|list|length }}", p=people) == "2"
    assert render("{{ [3, 1, 3]|unique|sum }} {{ [3, 1]|max }} {{ []|max is none }}", p=0) == "4 3 yes"
    assert (
        render("{% for k, v in p.items() %}{{ loop.index }}{{ k }}={{ v }} {% endfor %}", p=people[0]) == "1n=A 2age=3 "
    )
    assert render("{{ p.get('x', 'none') }} {{ p['n'] }} {{ 'n' in p }}", p=people[0]) == "none A yes"
    assert render("{{ p[-1].n }} {{ p[:1][0].n }} {{ p[7] is defined }}", p=people) == "C A no"


def test_chat_templates_of_models_run_too() -> None:
    source = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nBe brief<|im_end|>\\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\\n' + message['content']|trim + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )

    def raise_exception(message: str) -> str:
        raise TemplateError(message)

    sandbox = Sandbox(None, {"raise_exception": raise_exception})
    messages = [{"role": "user", "content": Text.of(" Hi ", ("history", "0"))}]
    text = sandbox.compile(source).render({"messages": messages, "add_generation_prompt": True})
    assert text == ("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert shown(text) == [("Hi", "0")]
    with pytest.raises(TemplateError, match="roles must alternate"):
        sandbox.compile("{{ raise_exception('roles must alternate') }}").render({})


def test_a_refused_render_leaves_no_limit_behind() -> None:
    sandbox = Sandbox((), limits=Limits(fuel=50))
    with pytest.raises(TemplateError, match="too much work"):
        sandbox.compile("{% for i in range(100) %}{% endfor %}").render({})
    # Our own code goes on unmetered in the same thread.
    assert len(Text.of("x" * 1000, TITLE)[::-1]) == 1000


def test_threads_do_not_share_a_meter() -> None:
    program = Sandbox((), limits=Limits(fuel=3000)).compile("{% for i in range(900) %}.{% endfor %}")
    found: list[object] = []

    def many() -> None:
        try:
            found.extend(program.render({}) for _ in range(20))
        except TemplateError as error:
            found.append(error)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["." * 900] * 80


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="{}%#'\"|~.[]() x1+-*/\n_forinedsetabc\\", max_size=60))
def test_any_source_renders_or_is_a_template_error(source: str) -> None:
    # Any other kind of exception would come through.
    with contextlib.suppress(TemplateError):
        render("{{ x }}" + source, x=Text.of("T", TITLE))
