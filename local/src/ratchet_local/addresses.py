"""Loopback addresses: every platform owns one 127.x.y.0/24, and every pod an address in it.

Room: local. Touches sockets of this machine only. Linux answers on all of 127.0.0.0/8, so an address of its own
costs nothing and lets each platform, and each pod, use the usual port numbers.
"""

import hashlib
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ratchet_local.errors import PlatformError

FIRST_POD, LAST_POD = 10, 254


@dataclass(frozen=True)
class Subnet:
    """127.`second`.`third`.0/24."""

    second: int
    third: int

    def host(self, last: int) -> str:
        return f"127.{self.second}.{self.third}.{last}"

    @property
    def platform(self) -> str:
        """The address of the platform's own servers."""
        return self.host(1)


def candidates(state: Path) -> Iterator[Subnet]:
    """Subnets to try, in an order that depends on the state folder, so that a restart finds its old one first.

    127.0.x is left to others; 127.53.x and the like are used by some resolvers, hence the range 64..127.
    """
    start = int.from_bytes(hashlib.sha256(str(state).encode()).digest()[:4], "big")
    size = 64 * 256
    for step in range(256):
        index = (start + step * 61) % size
        yield Subnet(64 + index // 256, index % 256)


@dataclass
class Claim:
    """A subnet that is ours as long as the socket is open."""

    subnet: Subnet
    _token: socket.socket = field(repr=False)

    def release(self) -> None:
        self._token.close()


def claim_subnet(state: Path) -> Claim:
    """Take the first subnet that no other platform of this network namespace holds.

    The token is an abstract unix socket: the kernel scopes its name exactly as it scopes loopback addresses, and
    drops it when its holder dies. Raises PlatformError when 256 subnets are taken.
    """
    for subnet in candidates(state):
        token = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            token.bind(f"\0ratchet-local/{subnet.host(0)}")
        except OSError:
            token.close()
            continue
        if bindable(subnet.platform, 0):
            return Claim(subnet, token)
        token.close()
    raise PlatformError("no loopback network 127.x.y.0/24 is free: end other platforms with `ratchet local down`")


def bindable(address: str, port: int) -> bool:
    """Whether a TCP server could listen there now (a server on 0.0.0.0 takes the port on every address)."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def choose_port(address: str, preferred: int, taken: set[int], also: str | None = None) -> int:
    """`preferred` when it is free on `address` (and on `also`), else a free one; adds it to `taken`.

    Raises PlatformError when 50 tries find none.
    """

    def free(port: int) -> bool:
        return port not in taken and bindable(address, port) and (also is None or bindable(also, port))

    if free(preferred):
        taken.add(preferred)
        return preferred
    for _ in range(50):
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.bind((address, 0))
            port = int(probe.getsockname()[1])
        if free(port) and port < 55_000:  # seaweedfs adds 10,000 for its gRPC twin
            taken.add(port)
            return port
    raise PlatformError(f"no free TCP port on {address}: something uses up all ephemeral ports of this machine")


class PodAddresses:
    """Hands out pod addresses of a subnet, each freed one as late as possible."""

    def __init__(self, subnet: Subnet) -> None:
        self._free = deque(subnet.host(last) for last in range(FIRST_POD, LAST_POD + 1))
        self._used: set[str] = set()

    def take(self, wanted: str | None = None) -> str:
        """An unused address; `wanted` itself if it is free (a pod that ran before). LookupError when all are used."""
        if wanted is not None and wanted in self._free:
            self._free.remove(wanted)
        elif self._free:
            wanted = self._free.popleft()
        else:
            raise LookupError(f"all {LAST_POD - FIRST_POD + 1} pod addresses are in use")
        self._used.add(wanted)
        return wanted

    def release(self, address: str) -> None:
        """Give an address back, to the end of the line. Releasing one twice does nothing."""
        if address in self._used:
            self._used.discard(address)
            self._free.append(address)
