"""The address by which files and open pages are counted as one visitor's, for sessions can be invented without end.

Behind a proxy all come from one address. uvicorn takes the visitor's from X-Forwarded-For where the environment's
FORWARDED_ALLOW_IPS names the proxies: the last entry that none of them has added.
"""

import ipaddress

from starlette.types import Scope

from app.gradio_private import request_of_handler


def of(scope: Scope) -> str:
    """The address that a request comes from, as `network` writes it; empty where the connection has none."""
    client = scope.get("client")
    return network(client[0]) if client else ""


def of_handler() -> str:
    """The same, of the request that Gradio calls a function of ours for; empty outside of one."""
    request = request_of_handler()
    return of(request.request.scope) if request is not None and request.request is not None else ""


def network(host: str) -> str:
    """`host`, or for IPv6 the /64 that one visitor is given whole; as it is where it is no address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)
