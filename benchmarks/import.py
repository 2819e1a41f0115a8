"""Time and memory of an import, against DuckDB's bare copy of the same CSV to Parquet.

    python -m benchmarks.import --rows 10000000 --linear 1000000 30000000

One run makes the CSV, then measures in turn: the bare copy (nothing checked, bad rows dropped, the same threads), and
the whole import (validation, id maps, fingerprint, refused rows kept, Parquet). Every measurement is a process of its
own, so that its peak memory is its own; sides alternate, medians are quoted. ``--linear`` imports several sizes in
turn, as often, and tells what each row costs beyond the start that every import has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "import.json"
THREADS = 2
#: So few rows that their import takes what every import takes: libraries loaded, files judged, a version written.
START_ROWS = 1000
_BLOCK = 500_000
_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", np.uint8)
#: Allowed by issue 3.
MAX_RATIO, MAX_GB, MAX_PORTRAIT_S = 2.0, 3.0, 5.0


# ------------------------------------------------------------------------------------------------ the data


def make_csv(path: Path, n_rows: int, bad: float, seed: int = 0) -> None:
    """user_id,item_id,rating,timestamp: long-tailed, with ids as shops write them; a share of the rows is bad.

    Bad rows are in equal parts: a word for a rating, an empty user, a cell too few, a time nobody can read.
    """
    rng = np.random.default_rng(seed)
    n_users, n_items = max(1000, n_rows // 50), max(500, n_rows // 200)
    users, items = _ids(rng, n_users, b"A", 13), _ids(rng, n_items, b"B0", 8)
    user_share = rng.lognormal(0.0, 1.0, n_users).cumsum()
    item_share = rng.lognormal(0.0, 1.6, n_items).cumsum()
    steps = pa.array(["1.0", "2.0", "3.0", "4.0", "5.0"])
    with path.open("wb") as stream:
        stream.write(b"user_id,item_id,rating,timestamp\n")
        for start in range(0, n_rows, _BLOCK):
            n = min(_BLOCK, n_rows - start)
            user = users.take(pa.array(np.searchsorted(user_share, rng.random(n) * user_share[-1])))
            item = items.take(pa.array(np.searchsorted(item_share, rng.random(n) * item_share[-1])))
            rating = steps.take(pa.array(rng.choice(5, n, p=[0.06, 0.06, 0.12, 0.26, 0.5])))
            seconds = pa.array(rng.integers(1_200_000_000, 1_700_000_000, n)).cast(pa.string())
            fault = np.where(rng.random(n) < bad, rng.integers(0, 4, n), -1)
            user = pc.if_else(pa.array(fault == 1), "", user)
            rating = pc.if_else(pa.array(fault == 0), "good", rating)
            seconds = pc.if_else(pa.array(fault == 3), "last week", seconds)
            short = pc.binary_join_element_wise(user, item, rating, ",")
            full = pc.binary_join_element_wise(short, seconds, ",")
            lines = pc.binary_join_element_wise(pc.if_else(pa.array(fault == 2), short, full), "", "\n")
            stream.write(memoryview(lines.cast(pa.large_string()).buffers()[2]))


def _ids(rng: np.random.Generator, n: int, head: bytes, length: int) -> pa.Array:
    letters = _ALPHABET[rng.integers(0, 32, (n, length))]
    heads = np.tile(np.frombuffer(head, np.uint8), (n, 1))
    text = np.ascontiguousarray(np.hstack([heads, letters])).view(f"S{len(head) + length}").ravel()
    return pa.array(text.astype(str))


# ------------------------------------------------------------------------------------------------ what is measured


def bare_copy(csv: Path, folder: Path) -> dict[str, Any]:
    with timed() as found, duckdb.connect(config={"threads": THREADS}) as database:
        query = "COPY (SELECT * FROM read_csv($csv, ignore_errors = true)) TO '{}' (FORMAT parquet)"
        database.execute(query.format(folder / "bare.parquet"), {"csv": str(csv)})
    return {**found, "rows": pq.read_metadata(folder / "bare.parquet").num_rows}


def whole_import(csv: Path, folder: Path) -> dict[str, Any]:
    from llmrec_core.data import import_files
    from llmrec_core.workspace import Workspace

    pa.set_cpu_count(THREADS)
    workspace = Workspace.open(folder / "workspace")
    with timed() as found:
        report = import_files(workspace, [csv], "big")
    return {**found, "rows": report.rows_accepted, "refused": report.rows_rejected}


def whole_portrait(csv: Path, folder: Path) -> dict[str, Any]:
    from llmrec_core.data import DatasetStore, portrait
    from llmrec_core.workspace import Workspace

    pa.set_cpu_count(THREADS)
    store = DatasetStore(Workspace.open(folder / "workspace"))
    with timed() as found:
        described = portrait(store.load("big"))
    return {**found, "rows": described.n_interactions}


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds and CPU seconds of what runs inside, without what it took to load the program."""
    found: dict[str, float] = {}
    start, cpu = time.perf_counter(), time.process_time()
    yield found
    found |= {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}


TASKS = {"copy": bare_copy, "import": whole_import, "portrait": whole_portrait}


def measured(task: str, csv: Path, folder: Path) -> dict[str, Any]:
    """One task in a process of its own: seconds, CPU seconds and peak memory."""
    if task == "import":
        shutil.rmtree(folder / "workspace", ignore_errors=True)
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--task",
        task,
        "--csv",
        str(csv),
        "--folder",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {task:9} {found['seconds']:7.2f} s {found['cpu_s']:7.2f} CPU s {found['peak_gb']:6.2f} GB", flush=True)
    return found


def run_task(task: str, csv: Path, folder: Path) -> None:
    found = TASKS[task](csv, folder)
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print(json.dumps({**found, "peak_gb": peak}))


def median(runs: list[dict[str, Any]], key: str = "seconds") -> float:
    return statistics.median(run[key] for run in runs)


def compare(rows: int, bad: float, repeats: int, folder: Path) -> dict[str, Any]:
    csv = folder / "big.csv"
    print(f"making {rows:,} rows", flush=True)
    make_csv(csv, rows, bad)
    runs: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for _ in range(repeats):
        for task in TASKS:
            runs[task].append(measured(task, csv, folder))
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs["import"], runs["copy"], strict=True)]
    return {
        "rows": rows,
        "repeats": repeats,
        "csv_gb": csv.stat().st_size / 1e9,
        "accepted": runs["import"][0]["rows"],
        "refused": runs["import"][0]["refused"],
        "copy_s": median(runs["copy"]),
        "import_s": median(runs["import"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "copy_cpu_s": median(runs["copy"], "cpu_s"),
        "import_cpu_s": median(runs["import"], "cpu_s"),
        "peak_gb": max(run["peak_gb"] for run in runs["import"]),
        "portrait_s": median(runs["portrait"]),
        "portrait_peak_gb": max(run["peak_gb"] for run in runs["portrait"]),
    }


def growth(sizes: list[int], bad: float, repeats: int, folder: Path) -> dict[str, Any]:
    """Imports of several sizes in turn, and what an import of hardly any rows takes: its start.

    Returns:
        ``start_s``; and for each size its medians, with the microseconds that each row costs beyond the start.
    """
    files = {rows: folder / f"{rows}.csv" for rows in sorted({START_ROWS, *sizes})}
    for rows, csv in files.items():
        print(f"making {rows:,} rows", flush=True)
        make_csv(csv, rows, bad)
    runs: dict[int, list[dict[str, Any]]] = {rows: [] for rows in files}
    for _ in range(repeats):
        for rows, csv in files.items():
            runs[rows].append(measured("import", csv, folder))
    start, start_cpu = median(runs[START_ROWS]), median(runs[START_ROWS], "cpu_s")
    return {
        "repeats": repeats,
        "start_s": start,
        "start_cpu_s": start_cpu,
        "sizes": [
            {
                "rows": rows,
                "import_s": median(runs[rows]),
                "every_s": [run["seconds"] for run in runs[rows]],
                "cpu_s": median(runs[rows], "cpu_s"),
                "peak_gb": max(run["peak_gb"] for run in runs[rows]),
                "us_per_row": (median(runs[rows]) - start) / rows * 1e6,
                "cpu_us_per_row": (median(runs[rows], "cpu_s") - start_cpu) / rows * 1e6,
            }
            for rows in sorted(sizes)
        ],
    }


# ------------------------------------------------------------------------------------------------ the run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--bad", type=float, default=0.01, help="share of bad rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--linear", type=int, nargs="*", default=[], help="sizes whose imports show how cost grows")
    parser.add_argument("--only", choices=("ratio", "linear"), help="measure one part, keep the other's last result")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder without it")
    parser.add_argument("--dry", action="store_true", help="print the table, keep no result")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--csv", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        run_task(given.task, given.csv, given.folder)
        return
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="import-") as made:
        folder = Path(made)
        main_size = None if given.only == "linear" else compare(given.rows, given.bad, given.repeats, folder)
        grown = growth(given.linear, given.bad, given.repeats, folder) if given.linear else None
    result = {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": THREADS, "python": platform.python_version()},
        "versions": {"duckdb": duckdb.__version__, "pyarrow": pa.__version__},
        "bad_share": given.bad,
    }
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if given.only and RESULTS.is_file() else {}
    result |= {
        name: part or before[name]
        for name, part in (("main", main_size), ("growth", grown))
        if part is not None or name in before
    }
    print(table(result))
    if not given.dry:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    lines: list[str] = []
    if "main" in result:
        found = result["main"]
        lines += [
            f"| {found['rows']:,} rows, {result['bad_share']:.0%} bad | measured | allowed |",
            "|---|---|---|",
            f"| DuckDB's bare copy to Parquet | {found['copy_s']:.1f} s ({found['copy_cpu_s']:.1f} CPU s) | |",
            f"| import | {found['import_s']:.1f} s ({found['import_cpu_s']:.1f} CPU s) | |",
            f"| **import / copy** (median of {found['repeats']}) | **{found['ratio']:.2f}** | {MAX_RATIO:g} |",
            f"| peak memory of the import | {found['peak_gb']:.2f} GB | {MAX_GB:g} GB |",
            f"| portrait | {found['portrait_s']:.1f} s | {MAX_PORTRAIT_S:g} s |",
            "",
        ]
    if "growth" in result:
        found = result["growth"]
        lines += [
            f"An import of {START_ROWS:,} rows: {found['start_s']:.2f} s ({found['start_cpu_s']:.2f} CPU s).",
            "",
            f"| rows | import (median of {found['repeats']}) | a row beyond the start | in CPU time | peak memory |",
            "|---|---|---|---|---|",
        ]
        for size in found["sizes"]:
            each = f"{size['us_per_row']:.2f} µs | {size['cpu_us_per_row']:.2f} µs"
            lines.append(f"| {size['rows']:,} | {size['import_s']:.1f} s | {each} | {size['peak_gb']:.2f} GB |")
    return "\n".join(lines)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
