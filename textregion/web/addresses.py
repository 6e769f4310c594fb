"""Hosts as requests name them: which mean this machine, which the page itself."""

import ipaddress
import re

HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::\d{1,5})?", re.IGNORECASE)  # [address] or name, port


def is_local(host: str) -> bool:
    """Whether a Host header names this machine: localhost or an address of 127.0.0.0/8 or ::1, with or without port."""
    found = HOST.fullmatch(host)
    if found is None:
        return False
    return host.lower().split(":")[0] == "localhost" or is_loopback(found[1] or found[2])


def is_loopback(address: str) -> bool:
    """Whether an IP address is one by which only this machine is reached; False for a name."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def origin_host(origin: str) -> str:
    """Host and port of an Origin header, in lower case; nothing for `null`."""
    return origin.partition("://")[2].lower()
