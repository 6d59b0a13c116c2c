"""Host and port of the page, checked before Gradio reads them, and the socket that listens there."""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Collection

PORT = 7860
"""The first port that is tried where none is named."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that lead nowhere else."""
TRIES = 100
"""Ports that are tried then."""


def as_port(text: str) -> int:
    """A port from the command line or the environment. Raises ValueError with a sentence for what is none."""
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 65535):
        raise ValueError(f"{text[:40]!r} is no port; choose a number from 1 to 65535.")
    return int(text)


def named_port() -> int | None:
    """GRADIO_SERVER_PORT; None where it is not set. Raises ValueError with a sentence for what is no port."""
    text = os.environ.get("GRADIO_SERVER_PORT")
    try:
        return as_port(text) if text else None
    except ValueError as problem:
        raise ValueError(f"GRADIO_SERVER_PORT: {problem}") from None


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at `host`, a name or an address, IPv6 with or without brackets; `::` takes IPv4 as well.

    `port` None: the first free one from GRADIO_SERVER_PORT or 7860. Raises OSError with a sentence.
    """
    host = host.removeprefix("[").removesuffix("]")
    first = port or named_port() or PORT
    for number in range(first, first + 1 if port else min(first + TRIES, 65536)):
        try:
            family, _, _, _, place = socket.getaddrinfo(
                host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            both = family == socket.AF_INET6 and place[0] == "::" and socket.has_dualstack_ipv6()
            return socket.create_server(place[:2], family=family, dualstack_ipv6=both)
        except socket.gaierror as problem:
            raise OSError(f"there is no address {host[:80]!r}; name one of this machine with --host.") from problem
        except UnicodeError as problem:  # a label of more than 63 letters, or none
            raise OSError(f"{host[:80]!r} is no name of a machine; name one with --host.") from problem
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE and port is None:
                continue
            raise OSError(_refusal(host, number, problem)) from problem
    raise OSError(f"the {TRIES} ports from {first} on are all taken; name another with --port.")


def _refusal(host: str, port: int, problem: OSError) -> str:
    if problem.errno == errno.EADDRINUSE:
        return f"port {port} is taken; end what runs there, or name another with --port."
    if problem.errno == errno.EACCES:
        return f"port {port} may not be used by this user; choose one above 1023 with --port."
    if problem.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{host} is no address of this machine; name one with --host."
    return f"{problem.strerror or problem} (port {port} of {host})."


def ours(host: str, allowed: Collection[str], *, public: bool) -> Callable[[str], bool]:
    """A check whether the page may be asked for by a name, where it is served at `host` and `allowed` by its operator.

    One's own page is known by what it is served at, one that other machines see also by this machine's name and by any
    address, for nobody can lead an address elsewhere. A public one has names that only its operator knows: without
    `allowed` it takes any.
    """
    host = host.removeprefix("[").removesuffix("]")
    if public and not allowed:
        return lambda name: True
    own_names = {*LOOPBACK, host.lower(), *(name.lower() for name in allowed)}
    shared = not public and not _is_loopback(host)
    if shared:
        hostname = socket.gethostname().lower()
        own_names |= {hostname, f"{hostname}.local", socket.getfqdn().lower()}
    return lambda name: name in own_names or (shared and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host.lower() == "localhost"


def url_of(listener: socket.socket) -> str:
    """The address to open the page at, on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "localhost", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
