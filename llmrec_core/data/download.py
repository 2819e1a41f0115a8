"""A file from the web into a folder, without ever reaching an address that the person did not mean.

Every hop is resolved and checked, and the connection is made to the address that was checked: a name that resolves to
something else a moment later gains nothing. Proxies of the environment are not used, since they would resolve again.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from email.message import Message
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from llmrec_core.errors import DataError, InputError

#: Told what is going on, one sentence a call.
Progress = Callable[[str], None]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_BYTES = 16 << 30
MAX_SECONDS = 3600.0
_MAX_HOPS = 5
_IDLE_S = 30.0
_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 30
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def download(
    url: str,
    folder: Path,
    *,
    allow_private: bool = False,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
    progress: Progress | None = None,
) -> Path:
    """Fetches one file into ``folder``, under the name that the server or the address gives it.

    Args:
        url: http or https; no user name in it.
        allow_private: the host of ``url`` may be this machine or in a private network; hosts it redirects to may not.
        max_bytes: most bytes that are taken.
        max_seconds: most time for all hops together.

    Raises:
        InputError: the address is not of the right form or kind.
        DataError: it leads to a forbidden address, cannot be reached, or brings no file; nothing is left in ``folder``.
    """
    say = progress or (lambda message: None)
    deadline = time.monotonic() + max_seconds
    # The person named one host; where it sends us was not meant, and may be a way into another private place.
    named = _checked(url).hostname
    for _ in range(_MAX_HOPS + 1):
        parts = _checked(url)
        with _connected(parts, allow_private and parts.hostname == named, deadline) as connection:
            say(f"asking {parts.hostname}")
            with closing(_asked(connection, parts)) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    target = urljoin(url, answer.getheader("Location") or "")
                    if parts.scheme == "https" and urlsplit(target).scheme == "http":
                        raise _refused(parts, "it leads from a protected to an unprotected address")
                    url = target
                    continue
                if answer.status != 200:
                    raise DataError(
                        f"the server answered {answer.status} {answer.reason[:80]}.",
                        where=_shown(parts),
                        fix="Open the address in a browser to see what it wants.",
                    )
                return _saved(answer, parts, folder, max_bytes, say)
    raise DataError(f"more than {_MAX_HOPS} redirects.", where=_shown(parts), fix="Give the last address.")


def _checked(url: str) -> SplitResult:
    """The parts of an address that may be asked at all."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InputError("this is not a valid address.", where=url[:80], fix="Use https://...") from None
    if parts.scheme not in ("http", "https"):
        raise InputError(f"addresses of kind {parts.scheme[:20]!r} are not read.", fix="Use https://...")
    if not host or port == 0 or re.search(r"[\x00-\x20\x7f\\]", url):
        raise InputError("this is not a valid address.", where=url[:80], fix="Use https://...")
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "the address holds a user name or password.", where=host, fix="Fetch the file yourself and import it."
        )
    return parts


def _shown(parts: SplitResult) -> str:
    """The address without its query, which may hold a key."""
    return f"{parts.scheme}://{parts.netloc}{parts.path}"[:200]


def _refused(parts: SplitResult, why: str) -> DataError:
    return DataError(f"the address is refused: {why}.", where=_shown(parts), fix="Fetch the file yourself.")


def forbidden(address: Address) -> bool:
    """Whether an address is anything but a public one: this machine, a private network, a group, or one inside IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address.teredo is not None:
            return True
        if inner is not None:
            return forbidden(inner)
        if int(address) < 1 << 32:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified


def _addresses(parts: SplitResult, allow_private: bool) -> list[Address]:
    """All addresses of the host; one forbidden address among them is enough to refuse it."""
    host = str(parts.hostname)
    try:
        found = socket.getaddrinfo(host, _port(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise DataError("the server cannot be found.", where=_shown(parts), fix="Check the address.") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not allow_private and any(forbidden(address) for address in addresses):
        raise _refused(parts, "it leads to this machine or to a private network")
    return addresses


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


@contextmanager
def _connected(parts: SplitResult, allow_private: bool, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """A connection to a checked address of the host, which is cut at the deadline."""
    addresses = _addresses(parts, allow_private)
    plain = None
    for address in addresses:
        left = deadline - time.monotonic()
        try:
            plain = socket.create_connection((str(address), _port(parts)), timeout=max(0.01, min(_IDLE_S, left)))
            break
        except OSError:
            continue
    if plain is None:
        raise DataError("the server cannot be reached.", where=_shown(parts), fix="Try again later.")
    late = threading.Event()
    used: list[socket.socket] = [plain]

    def cut() -> None:
        late.set()
        with suppress(OSError):
            # Where it was closed in the same moment, there is nothing left to cut.
            used[-1].shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.01, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    connection = http.client.HTTPConnection(str(parts.hostname), _port(parts))
    try:
        connection.sock = plain
        if parts.scheme == "https":
            protected = ssl.create_default_context().wrap_socket(
                plain, server_hostname=parts.hostname, do_handshake_on_connect=False
            )
            connection.sock = protected
            used.append(protected)
            protected.do_handshake()
        yield connection
    except (DataError, OSError, http.client.HTTPException) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise DataError("it takes too long.", where=_shown(parts), fix="Try again later.") from error
        if isinstance(error, DataError):
            raise
        if isinstance(error, ssl.SSLError):
            what = f"no protected connection is possible ({error.reason or error})"
        else:
            what = f"the connection broke ({str(error)[:120] or type(error).__name__})"
        raise DataError(f"{what}.", where=_shown(parts), fix="Try again later.") from error
    finally:
        timer.cancel()
        connection.close()
        for each in used:
            each.close()


def _asked(connection: http.client.HTTPConnection, parts: SplitResult) -> http.client.HTTPResponse:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.putrequest("GET", _ascii(path), skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc)
    connection.putheader("Accept", "*/*")
    connection.putheader("Accept-Encoding", "identity")
    connection.putheader("User-Agent", "llmrec-studio")
    connection.putheader("Connection", "close")
    connection.endheaders()
    return connection.getresponse()


def _ascii(path: str) -> str:
    return "".join(c if "!" <= c <= "~" else "".join(f"%{byte:02X}" for byte in c.encode()) for c in path)


def _saved(answer: http.client.HTTPResponse, parts: SplitResult, folder: Path, max_bytes: int, say: Progress) -> Path:
    where = _shown(parts)
    if answer.getheader("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise DataError("the server sends the file packed, though asked not to.", where=where, fix="Fetch it yourself.")
    kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise DataError("this is a web page, not a file.", where=where, fix="Give the address of the download itself.")
    expected = answer.getheader("Content-Length")
    if expected is not None and expected.isdigit() and int(expected) > max_bytes:
        raise DataError(f"the file is larger than {max_bytes:,} bytes.", where=where, fix="Fetch a part of it.")
    room = shutil.disk_usage(folder).free - _SPARE_BYTES
    target = Path(tempfile.mkdtemp(prefix="fetched-", dir=folder)) / _name(answer.headers, parts)
    written = 0
    try:
        with target.open("xb") as sink:
            while block := answer.read(_BLOCK_BYTES):
                written += len(block)
                if written > max_bytes:
                    raise DataError(f"the file is larger than {max_bytes:,} bytes.", where=where, fix="Fetch a part.")
                if written > room:
                    raise DataError("there is not enough room on the disk.", where=where, fix="Make room.")
                sink.write(block)
                if written % (64 * _BLOCK_BYTES) < _BLOCK_BYTES:
                    say(f"{written:,} bytes of {expected or 'unknown'} fetched")
        if expected is not None and expected.isdigit() and int(expected) != written:
            raise DataError("the connection broke before the end of the file.", where=where, fix="Try again.")
        if not written:
            raise DataError("the file is empty.", where=where, fix="Check the address.")
        return target
    except BaseException:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise


def _name(headers: Message, parts: SplitResult) -> str:
    """A file name without anything that could lead elsewhere."""
    told = headers.get_filename() or unquote(parts.path.rstrip("/").rpartition("/")[2]) or "download"
    last = re.split(r"[/\\]", told)[-1]
    return re.sub(r"[^\w.,=()+# -]", "_", last).lstrip(".")[-100:] or "download"
