"""Network namespaces that are joined by links whose speed can be set (Linux, as root)."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

LINK = "eth0"
_HUB = "dcjax-hub"


def host(number: int) -> str:
    """Return the address of a process."""
    return f"10.77.0.{number + 1}"


def within(number: int) -> list[str]:
    """Return the words before a command that is to run in a process's namespace."""
    return ["ip", "netns", "exec", _name(number)]


def sent() -> int:
    """Return the bytes that this namespace has sent over its link, as the kernel counts them."""
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text())


@contextlib.contextmanager
def joined(count: int) -> Iterator[None]:
    """Make so many namespaces, each with a link to a bridge."""
    names = [_name(number) for number in range(count)]
    try:
        _ip("netns", "add", _HUB)
        _ip("-n", _HUB, "link", "add", "bridge", "type", "bridge")
        _ip("-n", _HUB, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            _ip("netns", "add", name)
            # gloo takes the address to which the machine's name leads.
            hosts = Path("/etc/netns", name, "hosts")
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n{host(number)} {socket.gethostname()}\n")
            _ip("link", "add", LINK, "netns", name, "type", "veth", "peer", port, "netns", _HUB)
            _ip("-n", _HUB, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{host(number)}/24", "dev", LINK)
            for link in (LINK, "lo"):
                _ip("-n", name, "link", "set", link, "up")
        yield
    finally:
        for name in (*names, _HUB):
            subprocess.run(["ip", "netns", "delete", name], check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def limit(count: int, rate: int) -> None:
    """Limit what each process sends to a rate in Mbit/s, by a token bucket; 0 for no limit."""
    for number in range(count):
        qdisc = ["tc", "-n", _name(number), "qdisc"]
        subprocess.run([*qdisc, "delete", "dev", LINK, "root"], check=False, capture_output=True)
        if rate:
            # What goes through at once: as much as the link carries in a millisecond.
            burst = max(128_000, rate * 1000 // 8)
            bucket = ("rate", f"{rate}mbit", "burst", f"{burst}b", "latency", "200ms")
            subprocess.run([*qdisc, "add", "dev", LINK, "root", "tbf", *bucket], check=True)


def _name(number: int) -> str:
    return f"dcjax{number}"


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)
