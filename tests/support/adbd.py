"""The phone's end of adb's protocol, over TCP: this machine's shell, and a cable that breaks.

Written after the protocol.txt and shell_protocol.h of Android's sources (packages/modules/adb),
so that the real adb can be heard when a phone goes away.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CNXN, _OPEN, _OKAY, _CLSE, _WRTE = (
    struct.unpack("<I", name)[0] for name in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
_HEADER = struct.Struct("<6I")  # command, two arguments, length and sum of the data, ~command
_STDIN, _STDOUT, _STDERR, _EXIT, _END_OF_STDIN = range(5)
_BANNER = (
    b"device::ro.product.name=x;ro.product.model=x;ro.product.device=x;features=shell_v2,cmd\0"
)
_VERSION, _MOST_BYTES = 0x01000001, 1 << 18


class Adbd:
    """A phone that `adb connect` finds; each connection may break once."""

    def __init__(self, breaks: list[int]) -> None:
        """Args: breaks: after how many bytes of stdin a connection breaks, one after another."""
        self.breaks = breaks
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stops taking connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                limit = self.breaks.pop(0) if self.breaks else None
                threading.Thread(target=_Connection(connection, limit).serve, daemon=True).start()


class _Connection:
    def __init__(self, connection: socket.socket, limit: int | None) -> None:
        self._socket, self._limit = connection, limit
        self._lock = threading.Lock()
        self._shells: dict[int, _Shell] = {}

    def serve(self) -> None:
        with suppress(OSError, EOFError), self._socket:
            while True:
                command, first, second, size, _, _ = _HEADER.unpack(self._read(_HEADER.size))
                data = self._read(size)
                if command == _CNXN:
                    self.send(_CNXN, _VERSION, _MOST_BYTES, _BANNER)
                elif command == _OPEN:
                    name = data.rstrip(b"\0").decode()
                    number = len(self._shells) + 1
                    self._shells[number] = _Shell(self, number, first, name.partition(":")[2])
                elif command == _WRTE:
                    self._shells[second].take(data)
                    if self._limit is not None and self._limit < 0:
                        self._socket.shutdown(socket.SHUT_RDWR)
                        break
                    self.send(_OKAY, second, first)
                elif command == _OKAY:
                    self._shells[second].ready.set()
        for shell in self._shells.values():
            shell.hang_up()

    def count(self, size: int) -> None:
        """Notes bytes of stdin."""
        if self._limit is not None:
            self._limit -= size

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        total = sum(data) & 0xFFFFFFFF
        header = _HEADER.pack(command, first, second, len(data), total, command ^ 0xFFFFFFFF)
        with self._lock:
            self._socket.sendall(header + data)

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = self._socket.recv(size - len(found))
            if not part:
                raise EOFError
            found += part
        return bytes(found)


class _Shell:
    def __init__(self, connection: _Connection, number: int, remote: int, script: str) -> None:
        self._connection, self._ids = connection, (number, remote)
        self._rest = b""
        self.ready = threading.Event()  # for the next packet
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            ["sh", "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        connection.send(_OKAY, *self._ids)
        threading.Thread(target=self._answer, daemon=True).start()

    def take(self, data: bytes) -> None:
        """Takes a piece of the shell protocol's stream."""
        self._rest += data
        assert self._process.stdin is not None
        while len(self._rest) >= 5:
            kind, size = struct.unpack_from("<BI", self._rest)
            if len(self._rest) < 5 + size:
                break
            content, self._rest = self._rest[5 : 5 + size], self._rest[5 + size :]
            with suppress(OSError, ValueError):
                if kind == _STDIN:
                    self._connection.count(size)
                    self._process.stdin.write(content)
                    self._process.stdin.flush()
                elif kind == _END_OF_STDIN:
                    self._process.stdin.close()

    def hang_up(self) -> None:
        """Ends what runs, as a phone does when its cable is pulled."""
        self.ready.set()
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGHUP)

    def _answer(self) -> None:
        streams = ((self._process.stdout, _STDOUT), (self._process.stderr, _STDERR))
        with suppress(OSError):
            for stream, kind in streams:  # scripts here say little on stderr
                assert stream is not None
                while block := os.read(stream.fileno(), 4096):
                    self._packet(kind, block)
            self._packet(_EXIT, bytes([self._process.wait() & 0xFF]))
            self._connection.send(_CLSE, *self._ids)

    def _packet(self, kind: int, content: bytes) -> None:
        self.ready.clear()
        data = struct.pack("<BI", kind, len(content)) + content
        self._connection.send(_WRTE, *self._ids, data)
        self.ready.wait(60)


@contextmanager
def adbd(*breaks: int) -> Iterator[Adbd]:
    """Yields a phone whose first connections break."""
    phone = Adbd(list(breaks))
    try:
        yield phone
    finally:
        phone.close()
