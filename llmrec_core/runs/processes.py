"""Processes that outlive whoever started them: who is who, and how to end them.

A pid alone means little after a restart, since the system hands it out again. A :class:`ProcessId` adds when the
process started, on a clock that nobody can set where the system offers one, so a stranger is never taken for a worker.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_LINUX = sys.platform.startswith("linux")
#: Away from Linux the start time comes from the wall clock with the system's own rounding.
_TOLERANCE_S = 0.0 if _LINUX else 1.0
#: Allocators that hand freed pieces out again sooner than glibc's does, the faster one first, and what keeps the
#: memory of large pieces with the process.
_ALLOCATORS = {
    "libjemalloc.so.2": {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"},
    "libtcmalloc_minimal.so.4": {"TCMALLOC_RELEASE_RATE": "0"},
    "libtcmalloc.so.4": {"TCMALLOC_RELEASE_RATE": "0"},
}


@dataclass(frozen=True)
class ProcessId:
    """One process and no other.

    Attributes:
        pid: number in the process table.
        started_at: on Linux seconds since boot (no clock change moves it), elsewhere since 1970.
        boot: the boot it belongs to on Linux, else "".
    """

    pid: int
    started_at: float
    boot: str = ""


def identify(pid: int, *, remains: bool = False) -> ProcessId | None:
    """The living process with that pid, else None; with ``remains`` also one that ended and was not reaped yet."""
    if _LINUX:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # The second field is the command's name in brackets and may hold spaces and brackets itself.
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X") and not remains:
            return None
        return ProcessId(pid, int(fields[19]) / os.sysconf("SC_CLK_TCK"), _boot_id())
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE and not remains:
            return None
        return ProcessId(pid, process.create_time())
    except psutil.Error:
        return None


def current() -> ProcessId:
    """This process."""
    found = identify(os.getpid())
    if found is None:
        raise RuntimeError("the process table does not list this process")
    return found


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs (its unreaped remains do not count)."""
    found = identify(process.pid)
    return (
        found is not None and found.boot == process.boot and abs(found.started_at - process.started_at) <= _TOLERANCE_S
    )


def spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that it outlives this one and no terminal's Ctrl-C reaches it.

    Args:
        argv: program and arguments; no shell sees them.
        log: file to which its output is appended.
        environment: variables set on top of this process's own.

    Raises:
        OSError: the program cannot be started or the log cannot be opened.
    """
    with open(log, "ab") as stream:
        if sys.platform == "win32":
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
            )
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


def module_argv(module: str, *arguments: str) -> list[str]:
    """argv that runs a module of this project with this Python; ``-P`` keeps the working folder off the import path."""
    return [sys.executable, "-P", "-u", "-m", module, *arguments]


def import_path() -> dict[str, str]:
    """Environment under which a child finds this very ``llmrec_core`` when it is used from a source checkout."""
    root = Path(__file__).resolve().parents[2]
    if root.name in ("site-packages", "dist-packages"):
        return {}
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{root}{os.pathsep}{known}" if known else str(root)}


def computing_environment() -> dict[str, str]:
    """Environment for a process that computes: :func:`sharing_environment`, and what it frees or makes is kept.

    oneDNN makes code for each shape of a product and keeps the last 1,024, of which one pass over some thousand prompts
    can ask for more: then the next pass makes it all again.

    A training step frees all it has made, and by default glibc hands that back: the next step takes it from the kernel
    anew, page by page, which costs bf16 training on processors a sixth of its time. Pages of 2 MB make that rarer
    still. :func:`allocator` takes the place of glibc's where it is installed. What whoever started this process has set
    stands.
    """
    wanted = {
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20),
        # The largest that glibc takes; larger pieces come from the kernel one by one.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    if not platform.libc_ver()[0].startswith("glibc"):
        wanted = {}
    instead = allocator()
    if instead is not None and "LD_PRELOAD" not in os.environ:
        # The loader ignores what it cannot load, and then glibc reads what it is told above.
        wanted |= {"LD_PRELOAD": str(instead), **_ALLOCATORS[instead.name]}
    wanted["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "4096"
    return sharing_environment() | {name: value for name, value in wanted.items() if name not in os.environ}


def allocator() -> Path | None:
    """An allocator that this machine has beside glibc's and that trains faster: jemalloc, else tcmalloc, else None.

    A training step asks for thousands of pieces of memory, and glibc walks lists of large free ones for each: on two
    cores in bf16 jemalloc takes some 5 % less time a step.
    """
    if not platform.libc_ver()[0].startswith("glibc"):
        return None
    system = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (f"{sys.prefix}/lib", "/usr/local/lib", f"/usr/lib/{system}", "/usr/lib64", "/usr/lib")
    places = (Path(folder, name) for name in _ALLOCATORS for folder in folders)
    return next((place for place in places if place.is_file()), None)


def allocator_in_words() -> str:
    """What hands out memory in a process with :func:`computing_environment`, and what would be faster."""
    found = allocator()
    if "LD_PRELOAD" in os.environ:
        return "as LD_PRELOAD says"
    if found is not None:
        return f"{found.name.removeprefix('lib').split('.')[0]} ({found})"
    if platform.libc_ver()[0].startswith("glibc"):
        return "glibc's; with jemalloc (Debian: libjemalloc2) a training on a processor takes some 5 % less time"
    return "the system's"


def sharing_environment() -> dict[str, str]:
    """Environment under which a process that computes leaves processors to others while it waits.

    GNU OpenMP, which PyTorch's threads come from on Linux, waits for the slowest thread of each small operation by
    turning in circles, for milliseconds. Where a browser or another run wants a processor too, that thread is the one
    that it keeps from running, and training crawls. A short wait and then sleep costs nothing that can be measured on
    idle processors. Others than GNU OpenMP do not read this.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return {}
    return {"GOMP_SPINCOUNT": "2000"}


def terminate(process: ProcessId) -> bool:
    """Asks the process and all of its group to end; False when it is gone (nobody else is signalled)."""
    return _signal_group(process, signal.SIGTERM)


def kill(process: ProcessId) -> bool:
    """Ends the process and all of its group at once; False when it is gone (nobody else is signalled)."""
    return _signal_group(process, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)


def _signal_group(process: ProcessId, number: signal.Signals) -> bool:
    if not is_alive(process):
        return False
    try:
        if sys.platform == "win32":
            # There are no groups to signal; TerminateProcess ends one process, so its children are asked for first.
            root = psutil.Process(process.pid)
            for child in root.children(recursive=True):
                child.kill()
            root.kill()
        elif os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    return True


def kill_orphans(process: ProcessId) -> int:
    """Ends what a dead worker left behind in its session (data loaders ...); returns how many.

    Only for this process's own child that is dead and not yet waited for: so long nobody else can have its number.
    """
    if sys.platform == "win32" or is_alive(process) or identify(process.pid, remains=True) != process:
        return 0
    ended = 0
    for pid in psutil.pids():
        try:
            if pid != process.pid and os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
                ended += 1
        except (ProcessLookupError, PermissionError):
            continue
    return ended


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
