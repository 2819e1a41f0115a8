"""Addresses: only public ones over http and https, checked at every hop, by a real server on this machine."""

from __future__ import annotations

import gzip
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmrec_core.data import download as module
from llmrec_core.data._roles import parse_mapping
from llmrec_core.data._sources import open_sources
from llmrec_core.data.download import download, forbidden
from llmrec_core.errors import DataError, InputError, LLMRecError

ROWS = b"user_id,item_id\nu1,a\nu2,b\n"


class Handler(BaseHTTPRequestHandler):
    """Answers by path; ``seen`` keeps what was asked."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        Handler.seen.append((path, self.headers["Host"]))
        if path.startswith("/to/"):
            self.answer(302, headers={"Location": path.removeprefix("/to/")})
        elif path == "/loop":
            self.answer(301, headers={"Location": "/loop"})
        elif path.startswith("/hop/"):
            left = int(path.removeprefix("/hop/"))
            self.answer(307, headers={"Location": f"/hop/{left - 1}" if left else "/ratings.csv"})
        elif path == "/named":
            self.answer(200, ROWS, {"Content-Disposition": 'attachment; filename="../../evil name.csv"'})
        elif path == "/page":
            self.answer(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"})
        elif path == "/packed":
            self.answer(200, gzip.compress(ROWS), {"Content-Encoding": "gzip"})
        elif path == "/claims.csv":
            self.answer(200, b"x", {"Content-Length": str(10**12)})
        elif path == "/endless.csv":
            self.answer(200, None, {})
            while True:
                self.wfile.write(b"x" * 65_536)
        elif path == "/short.csv":
            self.answer(200, ROWS, {"Content-Length": str(len(ROWS) + 10)})
        elif path == "/slow.csv":
            self.answer(200, None, {"Content-Length": "1000"})
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif path == "/empty.csv":
            self.answer(200, b"")
        elif path in ("/ratings.csv", "/ratings.csv.gz"):
            self.answer(200, gzip.compress(ROWS) if path.endswith("gz") else ROWS)
        else:
            self.answer(404, b"no")

    def answer(self, status: int, body: bytes | None = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = headers or {}
        if body is not None and "Content-Length" not in given:
            self.send_header("Content-Length", str(len(body)))
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is what some tests are about."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.seen.clear()
    found = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_address[1]}"
    found.shutdown()
    found.server_close()
    thread.join(5)


def files(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


# ------------------------------------------------------------------------------------------------ what is right


def test_a_file_is_fetched_as_it_is(server: str, tmp_path: Path) -> None:
    path = download(f"{server}/ratings.csv?key=secret", tmp_path, allow_private=True)
    assert path.name == "ratings.csv"
    assert path.read_bytes() == ROWS
    assert path.is_relative_to(tmp_path)
    again = download(f"{server}/ratings.csv", tmp_path, allow_private=True)
    assert again != path
    assert again.name == path.name


def test_redirects_are_followed_up_to_five(server: str, tmp_path: Path) -> None:
    assert download(f"{server}/hop/4", tmp_path, allow_private=True).read_bytes() == ROWS
    assert [path for path, _ in Handler.seen] == ["/hop/4", "/hop/3", "/hop/2", "/hop/1", "/hop/0", "/ratings.csv"]
    with pytest.raises(DataError, match="more than 5 redirects"):
        download(f"{server}/hop/5", tmp_path, allow_private=True)
    with pytest.raises(DataError, match="more than 5 redirects"):
        download(f"{server}/loop", tmp_path, allow_private=True)


def test_a_named_private_host_is_no_way_to_another_one(server: str, tmp_path: Path) -> None:
    port = server.rpartition(":")[2]
    for elsewhere in (f"http://127.0.0.2:{port}/ratings.csv", "http://169.254.169.254/latest/meta-data"):
        with pytest.raises(DataError, match="refused"):
            download(f"{server}/to/{elsewhere}", tmp_path, allow_private=True)
    assert not files(tmp_path)


def test_names_from_servers_never_become_paths(server: str, tmp_path: Path) -> None:
    path = download(f"{server}/named", tmp_path, allow_private=True)
    assert path.name == "evil name.csv"
    assert path.parent.parent == tmp_path


def test_a_packed_file_behind_an_address_is_a_table(server: str, tmp_path: Path) -> None:
    (source,) = open_sources(f"{server}/ratings.csv.gz", parse_mapping(()), tmp_path, allow_private=True)
    assert source.name == "ratings.csv.gz"
    assert source.careful(None).table.column("user_id").to_pylist() == ["u1", "u2"]


def test_the_connection_goes_to_the_address_that_was_checked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.rpartition(":")[2])
    asked: list[str] = []

    def answers(host: str, *args: Any, **options: Any) -> list[Any]:
        asked.append(host)
        # A name that changes its mind: the first answer is checked, a second one would lead elsewhere.
        address = "127.0.0.1" if len(asked) == 1 else "192.0.2.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(module.socket, "getaddrinfo", answers)
    connected: list[str] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(address[0])
        sock = socket.socket()
        sock.settimeout(timeout)
        sock.connect(address)
        return sock

    monkeypatch.setattr(module.socket, "create_connection", connect)
    path = download(f"http://data.example.org:{port}/ratings.csv", tmp_path, allow_private=True)
    assert path.read_bytes() == ROWS
    assert asked == ["data.example.org"]
    assert connected == ["127.0.0.1"]
    assert Handler.seen == [("/ratings.csv", f"data.example.org:{port}")]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x", "http://localhost/x", "http://localhost./x", "http://127.1/x", "http://2130706433/x",
        "http://0x7f000001/x", "http://0x7f.1/x", "http://017700000001/x", "http://0/x", "http://0.0.0.0/x",
        "http://[::1]/x", "http://[::]/x", "http://[::ffff:127.0.0.1]/x", "http://[::ffff:7f00:1]/x",
        "http://[::127.0.0.1]/x", "http://[64:ff9b::7f00:1]/x", "http://[2002:7f00:1::]/x", "http://[fe80::1]/x",
        "http://[fc00::1]/x", "http://[ff02::1]/x", "http://10.0.0.1/x", "http://172.16.5.4/x", "http://192.168.0.1/x",
        "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/x", "http://224.0.0.1/x", "http://240.0.0.1/x",
        "http://255.255.255.255/x", "https://127.0.0.1/x", "HTTP://LOCALHOST/x", "http://１２７.0.0.1/x",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_of_private_networks_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"private network|cannot be found"):
        open_sources(url, parse_mapping(()), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("8.8.8.8", False), ("2606:4700::1111", False), ("::ffff:8.8.8.8", False), ("64:ff9b::808:808", False),
        ("2002:808:808::", False), ("::ffff:10.0.0.1", True), ("64:ff9b::a00:1", True), ("2002:a00:1::", True),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", True), ("192.0.2.1", True), ("2001:db8::1", True), ("::1", True),
    ],
)  # fmt: skip
def test_addresses_inside_addresses_are_seen(address: str, refused: bool) -> None:
    assert forbidden(ipaddress.ip_address(address)) is refused


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "ftp://example.org/x", "gopher://example.org/",
        "data:text/csv,a", "s3://bucket/x", "http://", "http:///x", "http://user:word@example.org/x",
        "http://example.org:99999/x", "http://example.org/a b", "http://example.org/a\r\nHost: b", "http://exa\\mple/x",
        "https:example.org",
    ],
)  # fmt: skip
def test_other_kinds_of_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_sources(url, parse_mapping(()), tmp_path)
    assert "word" not in str(caught.value).replace("password", "")
    assert files(tmp_path) == []


def test_one_private_address_among_public_ones_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(DataError, match="private network"):
        download("http://example.org/x", tmp_path)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://169.254.169.254/latest", "private network"),
        ("http://localhost:1/x", "private network"),
        ("file:///etc/passwd", "not read"),
        ("ftp://example.org/x", "not read"),
    ],
)
def test_every_hop_is_checked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    own = ipaddress.ip_address("127.0.0.1")
    asked: list[Any] = []

    def only_others(address: Any) -> bool:
        # The test's own server stands for a public one, at its first appearance only.
        asked.append(address)
        return not (address == own and len(asked) == 1) and forbidden(address)

    monkeypatch.setattr(module, "forbidden", only_others)
    with pytest.raises(LLMRecError, match=words):
        download(f"{server}/to/{target}", tmp_path)
    assert len(Handler.seen) == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "answered 404"),
        ("/page", "a web page"),
        ("/packed", "sends the file packed"),
        ("/claims.csv", "larger than 1,000,000 bytes"),
        ("/endless.csv", "larger than 1,000,000 bytes"),
        ("/short.csv", r"before the end|connection broke"),
        ("/slow.csv", "takes too long"),
        ("/empty.csv", "empty"),
    ],
)
def test_what_brings_no_file_leaves_nothing(server: str, tmp_path: Path, path: str, words: str) -> None:
    before = time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        download(f"{server}{path}?key=secret", tmp_path, allow_private=True, max_bytes=10**6, max_seconds=1)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - before < 4
    assert files(tmp_path) == []


def test_a_server_that_says_nothing_is_left_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        for scheme in ("http", "https"):
            with pytest.raises(DataError, match="takes too long"):
                download(
                    f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path, allow_private=True, max_seconds=0.3
                )
        assert time.monotonic() - before < 4
    with pytest.raises(DataError, match="cannot be reached"):
        download("http://127.0.0.1:1/x", tmp_path, allow_private=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make, "-days", "1", "-subj", "/CN=127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    found = Server(("127.0.0.1", 0), Handler)
    found.socket = context.wrap_socket(found.socket, server_side=True)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    folder = tmp_path / "scratch"
    folder.mkdir()
    try:
        with pytest.raises(DataError, match="no protected connection"):
            download(f"https://127.0.0.1:{found.server_address[1]}/ratings.csv", folder, allow_private=True)
    finally:
        found.shutdown()
        found.server_close()
        thread.join(5)
    assert files(folder) == []


def test_a_protected_address_never_leads_to_an_unprotected_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        status, reason = 302, "Found"

        def getheader(self, name: str) -> str:
            return "http://example.org/x"

        def close(self) -> None:
            """Nothing is open."""

    @contextmanager
    def connected(*args: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(module, "_connected", connected)
    monkeypatch.setattr(module, "_asked", lambda *args: Answer())
    with pytest.raises(DataError, match="unprotected"):
        download("https://example.org/x", tmp_path)
