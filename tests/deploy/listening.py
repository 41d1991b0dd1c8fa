"""Which addresses a process listens on, as Linux tells it."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

LISTENS = "0A"


def listening(pid: int) -> set[tuple[str, int]]:
    """Every address and TCP port on which the process waits for connections."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
        except FileNotFoundError:  # closed meanwhile
            continue
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():  # a machine may have no IPv6
            _, local, _, state, *rest = line.split()
            if state == LISTENS and rest[5] in inodes:
                address, port = local.split(":")
                words = [struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found
