"""Hands a descriptor of the weights to an engine, as the Android app does.

`python handover.py NAME PATH` does it for tests that cannot: Java has no call for that on a PC.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.engine_client.client import EngineClient

ANSWER = b"w"  # the descriptors need a byte beside them


def send(name: str, descriptors: Sequence[int]) -> None:
    """Connects to the socket of an engine's event, and sends descriptors."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{name}")
        if descriptors:
            socket.send_fds(connection, [ANSWER], descriptors)
        else:
            connection.sendall(ANSWER)


@contextmanager
def handing_over(client: EngineClient, *descriptors: int) -> Iterator[None]:
    """Sends descriptors when the engine asks for the weights."""
    from runtime.engine_client.protocol import Event, Field

    process: Any = client._process
    receive = process.receive

    def answer(*arguments: Any) -> Any:
        line = receive(*arguments)
        if line[Field.EVENT] == Event.SOCKET:
            send(line[Field.NAME], descriptors)
        return line

    process.receive = answer
    try:
        yield
    finally:
        process.receive = receive


def main() -> None:
    name, path = sys.argv[1:]
    descriptor = os.open(Path(path), os.O_RDONLY)
    try:
        send(name, [descriptor])
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
