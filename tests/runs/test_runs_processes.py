"""Who is who in the process table, and whom a signal reaches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmrec_core.runs import processes

posix = pytest.mark.skipif(sys.platform == "win32", reason="process groups and zombies are POSIX")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_a_process_is_itself_and_no_other(sleeper: subprocess.Popen[bytes]) -> None:
    me, other = processes.current(), processes.identify(sleeper.pid)
    assert other is not None
    assert processes.is_alive(me)
    assert processes.is_alive(other)
    assert processes.identify(sleeper.pid) == other
    assert not processes.is_alive(replace(other, pid=me.pid))


@pytest.mark.parametrize("change", [{"started_at": 12.0}, {"boot": "another boot"}])
def test_a_stranger_with_a_reused_pid_is_never_signalled(
    sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    found = processes.identify(sleeper.pid)
    assert found is not None
    gone = replace(found, **change)  # type: ignore[arg-type]
    assert not processes.is_alive(gone)
    assert not processes.terminate(gone)
    assert not processes.kill(gone)
    assert processes.kill_orphans(gone) == 0
    time.sleep(0.05)
    assert sleeper.poll() is None


@posix
def test_a_zombie_is_dead_but_still_known(sleeper: subprocess.Popen[bytes]) -> None:
    before = processes.identify(sleeper.pid)
    assert before is not None
    assert processes.kill(before)
    while processes.is_alive(before):
        time.sleep(0.01)
    assert sleeper.returncode is None
    assert processes.identify(sleeper.pid) is None
    assert processes.identify(sleeper.pid, remains=True) == before
    assert not processes.terminate(before)


@pytest.mark.skipif(
    "GLIBC_TUNABLES" not in processes.computing_environment(), reason="another allocator, or told what to do already"
)
def test_a_worker_keeps_the_memory_that_it_freed(tmp_path: Path) -> None:
    """What a step of training does: make some arrays, free them all, and again; page faults after the first steps."""
    code = (
        "import resource\n"
        "def step():\n"
        "    del [b'x' * 3_000_000 for _ in range(40)][:]\n"
        "for _ in range(3): step()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )

    def faults(environment: dict[str, str]) -> int:
        log = tmp_path / f"log-{len(environment)}"
        assert processes.spawn([sys.executable, "-c", code], log, environment).wait(30) == 0
        return int(log.read_text())

    plain, kept = faults({}), faults(processes.computing_environment())
    # Two hundred times 3 MB are 146,000 pages of 4 KB.
    assert plain > 50_000
    assert kept < 1_000


def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these libraries, and no others, were on this machine; they hold nothing that could be loaded."""
    (folder / "lib").mkdir()
    for name in names:
        (folder / "lib" / name).write_bytes(b"no library")
    monkeypatch.setattr(processes.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(processes.sys, "prefix", str(folder))
    monkeypatch.setattr(processes.Path, "is_file", lambda path: path.parent == folder / "lib" and path.exists())
    monkeypatch.delenv("LD_PRELOAD", raising=False)


def test_an_allocator_that_is_installed_takes_the_place_of_glibcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _installed(tmp_path, monkeypatch, "libtcmalloc_minimal.so.4")
    assert processes.computing_environment()["LD_PRELOAD"] == f"{tmp_path}/lib/libtcmalloc_minimal.so.4"
    assert processes.allocator_in_words() == f"tcmalloc_minimal ({tmp_path}/lib/libtcmalloc_minimal.so.4)"
    (tmp_path / "lib" / "libjemalloc.so.2").write_bytes(b"no library")
    environment = processes.computing_environment()
    assert environment["LD_PRELOAD"] == f"{tmp_path}/lib/libjemalloc.so.2"
    assert "dirty_decay_ms:-1" in environment["MALLOC_CONF"]
    assert "MALLOC_TRIM_THRESHOLD_" in environment
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    assert not {"LD_PRELOAD", "MALLOC_CONF"} & processes.computing_environment().keys()
    assert processes.allocator_in_words() == "as LD_PRELOAD says"


def test_without_another_allocator_glibcs_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _installed(tmp_path, monkeypatch)
    assert "LD_PRELOAD" not in processes.computing_environment()
    assert "libjemalloc2" in processes.allocator_in_words()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the loader of Linux")
def test_an_allocator_that_cannot_be_loaded_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        _installed(tmp_path, patched, "libjemalloc.so.2")
        environment = processes.computing_environment()
    log = tmp_path / "log"
    assert processes.spawn([sys.executable, "-c", "print('computed')"], log, environment).wait(30) == 0
    assert log.read_text().splitlines()[-1] == "computed"


@pytest.mark.skipif(processes.allocator() is None or "LD_PRELOAD" in os.environ, reason="glibc's allocator alone")
def test_a_worker_takes_the_allocator(tmp_path: Path):
    code, log = "print(open('/proc/self/maps').read())", tmp_path / "log"
    assert processes.spawn([sys.executable, "-c", code], log, processes.computing_environment()).wait(30) == 0
    allocator = processes.allocator()
    assert allocator is not None
    assert allocator.name.split(".")[0] in log.read_text()


def test_what_somebody_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_TRIM_THRESHOLD_", code):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    assert "MALLOC_TOP_PAD_" not in processes.computing_environment()
    assert {"MALLOC_TRIM_THRESHOLD_", "GOMP_SPINCOUNT"} <= processes.computing_environment().keys()
    monkeypatch.setattr(processes.platform, "libc_ver", lambda: ("", ""))
    assert processes.sharing_environment() == {"GOMP_SPINCOUNT": "2000"}
    assert processes.computing_environment() == {"GOMP_SPINCOUNT": "2000", code: "4096"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert processes.computing_environment() == {code: "4096"}
    monkeypatch.setenv(code, "100")
    assert processes.computing_environment() == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP")
def test_threads_that_wait_leave_the_processor_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of both threads while one of them works alone: what the other burns is nobody's."""
    code = (
        "import os, time, torch\n"
        "torch.set_num_threads(2)\n"
        "x = torch.ones(400_000)\n"
        "x.add_(1)\n"
        "began, wall = time.process_time(), time.perf_counter()\n"
        "for _ in range(150):\n"
        "    x.add_(1)\n"
        "    time.sleep(0.002)\n"
        "print((time.process_time() - began) / (time.perf_counter() - wall))\n"
    )

    def busy(turns: str) -> float:
        log = tmp_path / f"log-{turns}"
        assert processes.spawn([sys.executable, "-c", code], log, {"GOMP_SPINCOUNT": turns}).wait(60) == 0
        return float(log.read_text())

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    # Ten million turns: waiting until the next operation comes, as by default where that is soon.
    assert busy("10000000") > 2 * busy(processes.sharing_environment()["GOMP_SPINCOUNT"])


@posix
def test_a_signal_reaches_the_whole_group(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    leader = processes.spawn([sys.executable, "-u", "-c", code], tmp_path / "log")
    while not (text := (tmp_path / "log").read_text()).endswith("\n"):
        time.sleep(0.02)
    found, child = processes.identify(leader.pid), processes.identify(int(text))
    assert found is not None
    assert child is not None
    assert os.getpgid(child.pid) == leader.pid != os.getpgid(0)
    assert processes.terminate(found)
    assert leader.wait(5) == -signal.SIGTERM
    while processes.is_alive(child):
        time.sleep(0.01)


def test_what_is_started_gets_arguments_literally_and_finds_the_project(tmp_path: Path) -> None:
    code = "import sys, llmrec_core, os; print(sys.argv[1:], os.environ['EXTRA'])"
    child = processes.spawn(
        [sys.executable, "-P", "-c", code, "x; touch pwned", "$(id)"],
        tmp_path / "log",
        {**processes.import_path(), "EXTRA": "é"},
    )
    assert child.wait(20) == 0
    assert (tmp_path / "log").read_text().strip() == "['x; touch pwned', '$(id)'] é"
    with pytest.raises(OSError):
        processes.spawn([str(tmp_path / "no such program")], tmp_path / "log")
