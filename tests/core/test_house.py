"""The house rules that code can check: who imports whom, what stays light, what stays safe."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "llmrec_core"

#: What each room may import besides itself; every room may import BASE.
BASE = {"errors", "specs", "contracts", "workspace", "saved"}
ALLOWED = {
    "errors": set(),
    "specs": set(),
    "workspace": set(),
    "contracts": {"data"},
    "presets": {"data"},
    "saved": set(),
    "feedback": {"data"},
    "data": set(),
    "prompts": {"data"},
    "baselines": {"data"},
    "evaluation": {"data"},
    "policies": {"data"},
    "models": {"data", "prompts"},
    "training": {"data", "prompts", "baselines", "models", "evaluation"},
    "recommenders": {"data", "prompts", "models", "training", "baselines", "evaluation"},
    "compression": {"data", "prompts", "models", "training", "recommenders", "evaluation"},
    "explanation": {"data", "prompts", "models", "training", "recommenders"},
    "figures": {"data"},
    "runs": {"data", "prompts"},
    "forgetting": {"data", "runs", "feedback"},
    "serving": {"data", "explanation", "policies", "recommenders", "runs", "models"},
}
#: Modules that join rooms, beyond what their room may do.
EXTRA = {
    "runs/jobs.py": {
        "baselines",
        "compression",
        "evaluation",
        "models",
        "policies",
        "presets",
        "recommenders",
        "serving",
    },
}
HEAVY = {"torch", "transformers", "peft", "shap", "accelerate"}
LIGHT = [
    *["errors", "specs", "contracts", "workspace", "presets", "feedback", "cli", "data", "prompts", "baselines"],
    *["evaluation", "figures", "runs", "runs.worker", "runs.supervisor", "serving.client", "models.catalogue"],
    *["forgetting", "data.privacy", "recommenders.leakage", "policies"],
]


def _imports(path: Path) -> set[str]:
    """Rooms of llmrec_core that a file imports, TYPE_CHECKING blocks left out."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skip = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skip:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "llmrec_core" and len(parts) > 1:
                found.add(parts[1])
    return found


#: The command line may import every room, each when a command needs it.
FILES = [
    path
    for path in sorted(CORE.rglob("*.py"))
    if (path.stem in ALLOWED if path.parent == CORE else path.relative_to(CORE).parts[0] != "cli")
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CORE).as_posix())
def test_nothing_imports_upwards(path):
    relative = path.relative_to(CORE).as_posix()
    room = relative.split("/")[0].removesuffix(".py")
    allowed = BASE | {room} | ALLOWED[room] | EXTRA.get(relative, set())
    rooms = {p.stem for p in CORE.iterdir()}
    assert (_imports(path) & rooms) - allowed == set()


def test_light_rooms_load_no_heavy_library():
    modules = [f"llmrec_core.{name}" for name in LIGHT]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_core_knows_no_streamlit():
    guilty = [p for p in CORE.rglob("*.py") if "import streamlit" in p.read_text() or "from streamlit" in p.read_text()]
    assert guilty == []


@pytest.mark.parametrize(
    "pattern",
    [
        "pickle.load",
        "joblib.load",
        "torch.load(",
        "trust_remote_code=True",
        "shell=True",
        "yaml.load(",
        "allow_pickle=True",
    ],
)
def test_nothing_unsafe_is_called(pattern):
    sources = [*CORE.rglob("*.py"), *(ROOT / "pages").rglob("*.py"), ROOT / "app.py"]
    guilty = [p.relative_to(ROOT).as_posix() for p in sources if p.exists() and pattern in p.read_text("utf-8")]
    assert guilty == []
