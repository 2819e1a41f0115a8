"""Templates that try to run long, grow large or get at Python; each must end as a TemplateError.

Run as a program it tries them all under a limit on memory and prints what each took, as JSON.
"""

from __future__ import annotations

import json
import resource
import time

NS = "{% set ns = namespace(s=x, l=[1], n=2) %}"


def each(n: int, body: str) -> str:
    return f"{{% for i in range({n}) %}}{body}{{% endfor %}}"


# Few enough passes to be allowed: what is refused is the size of what each pass does.
LONG = NS + "{% set a = 'a' * 60000 %}{% set b = 'a' * 59999 ~ 'b' %}{% set c = 'a' * 29999 ~ 'b' %}"
NUMBERS = "{% set l = range(1000)|list %}"

HOSTILE: dict[str, str] = {
    "mul": "{{ 'a'*500000000 }}",
    "mul2": "{{ 500000000*'a' }}",
    "doubling": NS + "{% for i in range(1000) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling+": NS + "{% for i in range(1000) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "listdouble": NS + "{% for i in range(1000) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "nested": NS + "{% for i in range(1000) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l == ns.l }}",
    "intgrow": NS + "{% for i in range(1000) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "pow": "{{ 10**10**10 }}",
    "pow2": "{{ 2**(2**60) }}",
    "floatpow": "{{ 10.5**10000 }}",
    "hugeint": "{{ 1" + "0" * 5000 + " }}",
    "mod": "{{ '%099999999d' % 5 }}",
    "range": "{{ range(10**9)|list }}",
    "range2": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": each(999, each(999, each(999, ""))),
    "loops4": "{% for a in x %}" * 40 + "{% endfor %}" * 40,
    "parens": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "not": "{{ " + "not " * 4900 + "1 }}",
    "minus": "{{ " + "-" * 19000 + "1 }}",
    "postfix": "{{ x" + "[0]" * 6000 + " }}",
    "attr": "{{ x" + ".a" * 9000 + " }}",
    "plus": "{{ 1" + "+1" * 9000 + " }}",
    "tilde": "{{ 1" + "~1" * 9000 + " }}",
    "pipes": "{{ x" + "|d" * 9000 + " }}",
    "ifs": "{% if x %}" * 1500,
    "ifs2": "{% if x %}" * 900 + "{% endif %}" * 900,
    "comments": "{#" * 10000,
    "blocks": "{%" * 10000,
    "vars": "{{-" * 6600,
    "ws": " " * 19990 + "{%",
    "nl": "\n" * 19000 + "{{ y }}",
    "quote": "{{ '" + "\\\\" * 9000,
    "lists": "{{ " + "[" * 9000 + "]" * 9000 + " }}",
    "dicts": "{{ " + "{1:" * 6000,
    "filtermap": "{{ x|center(10**9) }}",
    "format": "{{ '%0999999999d'|format(1) }}",
    "cls": "{{ ''.__class__ }}",
    "cls2": "{{ x['__class__'] }}",
    "cls3": "{{ x|map(attribute='__class__')|list }}",
    "init": "{{ namespace.__init__.__globals__ }}",
    "glob": "{{ range.__globals__ }}",
    "cycler": "{{ cycler.__init__ }}",
    "fmt": "{{ '{0.__class__}'.format(x) }}",
    "getitem": "{{ (x,)[0].__mro__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "loop": "{% for i in [1] %}{{ loop.__class__ }}{% endfor %}",
    "loopc": "{% for i in [1] %}{{ loop._undefined }}{% endfor %}",
    "ctx": "{{ caller() }}",
    "import": "{% import 'os' as o %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'x' %}",
    "callx": "{{ x.encode() }}",
    "joinfmt": "{{ x.format_map({}) }}",
    "manymarks": NS
    + each(14, "{% set ns.s = ns.s ~ ns.s %}")
    + each(999, "{% set a = ns.s[1:] %}{% set b = ns.s[::-1] %}"),
    "bigslice": LONG + each(999, each(4, "{% set d = a[::-1] %}")),
    "bigcmp": LONG + each(999, each(4, "{% set d = a == b %}")),
    "incl": LONG + each(999, each(4, "{% if c in a %}{% endif %}")),
    "strip": LONG + each(999, each(4, "{% if a.strip('a') %}{% endif %}")),
    "replace": NS + "{% set a='a'*60000 %}{{ a|replace('a', a) }}",
    "split": NS + "{% set a='a '*30000 %}{{ a.split()|length }}",
    "static": "{% for i in range(999) %}" + "x" * 19000 + "{% endfor %}",
    "output": "{% set a='a'*60000 %}{% for i in range(999) %}{{ a }}{% endfor %}",
    "title": "{% set a='ab '*20000 %}{% for i in range(999) %}{% set b = a|title|upper|lower %}{% endfor %}",
    "letters": "{% set a='ab '*20000 %}{% for i in a %}{{ i }}{% endfor %}",
    "sort": "{% for j in range(999) %}{% set b = range(1000)|sort(reverse=true)|list|unique %}{% endfor %}",
    "div": "{{ 1/0 }}",
    "dictsort": "{{ {1:2}|dictsort }}",
    "star": "{{ range(*[1]) }}",
    "cond": "{% for i in range(999) if range(1000)|sum %}{% endfor %}",
    "listindex": NUMBERS + each(999, each(4, "{% if 5000 in l %}{% endif %}")),
    "listslice": NUMBERS + each(999, each(4, "{% set q = l[::-1] %}")),
    "cycle": "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}",
    "recur": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "nsself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a == ns }}{{ ns }}",
    "dictns": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "macro": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "setblock": "{% set a %}x{% endset %}",
    "nul": "{{ '\x00' }}" * 3 + "{{ zzz }}",
    "set range": "{% set range = 1 %}",
    "method": "{{ x.upper }}",
    "whole": "{{ history }}",
    "tuplehash": "{% set ns=namespace(t=(1,)) %}" + each(50, "{% set ns.t=(ns.t,ns.t) %}") + "{{ {ns.t:1} }}",
    "surrogate": "\ud800",
}


def main() -> None:
    from llmrec_core.errors import TemplateError
    from llmrec_core.prompts._text import Text
    from llmrec_core.prompts.sandbox import Sandbox

    with open("/proc/self/statm") as status:
        in_use = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 256 * 2**20,) * 2)
    sandbox = Sandbox(("x", "history"))
    variables = {"x": Text.of("ab", ("candidate", "title")), "history": []}
    took = {}
    for name, source in HOSTILE.items():
        start = time.process_time()
        try:
            outcome = "rendered " + sandbox.compile(source).render(variables)[:80]
        except TemplateError as error:
            outcome = f"refused: {error}"
        took[name] = (time.process_time() - start, outcome)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
