"""The files of one app on a HarmonyOS phone, through `hdc -b APP`.

Only of an app that is signed for debugging, from its first start on until the phone restarts. By
the sources and tests of hdc (openharmony/developtools_hdc @ 8b85a677), a shell may make, read and
remove files and folders there, and change nothing of those that exist, their names included. So a
file goes in pieces, each whole by `hdc file send`. The app joins them when it starts
(`Weights.ets`).
"""

from __future__ import annotations

import re
import shlex
from hashlib import sha256 as sha256_of
from pathlib import Path

from convert.support.scratch import scratch_folder
from runtime.engine_client.hdc import PIECE_BYTES, Hdc
from runtime.engine_client.phone_shell import (
    FULL,
    TRIES,
    OnBytes,
    PhoneError,
    ToolResult,
    altered,
    file_hash,
    short_hash,
)

PIECES = "pushed"  # the folder of pieces, beside the file that they make
_SHARED = "/data/local/tmp"  # on the same storage
_NO_APP = (
    "the phone shows no files of that app: is it installed, signed for debugging as DevEco Studio "
    "signs it, and was it started since the phone started?"
)
_OLD = (
    "this hdc, or the phone's system, is too old for files of apps; import the weights in the app"
)
_WHY = {"E003001": _NO_APP, "E005101": _NO_APP, "E003004": _OLD, "E005004": _OLD}


class AppFilesError(PhoneError):
    """The phone shows no files of an app."""


class HdcApp(Hdc):
    """One app's files; paths are relative to what the phone shows of the app."""

    def __init__(self, serial: str, app: str, *, away_seconds: float | None = None) -> None:
        """Args: serial, away_seconds: see `PhoneShell`. app: its bundle name."""
        super().__init__(serial, away_seconds=away_seconds)
        self.app = app
        self._options = ("-b", app)

    def is_shown(self) -> bool:
        """Returns whether the phone shows the app's files."""
        try:
            return self.try_shell("true") is not None
        except AppFilesError:
            return False

    def free_bytes(self, folder: str) -> int:
        """See `PhoneShell`."""
        return Hdc(self.serial).free_bytes(_SHARED)

    def clear(self, remote: str, sha256: str) -> None:
        """See `PhoneShell`."""
        folder, mine = _folder(remote), short_hash(sha256)
        self.shell(
            f"rm -f {shlex.quote(remote)}; for piece in {shlex.quote(folder)}/*; do "
            f'case "$piece" in */{mine}-*) ;; *) rm -f "$piece";; esac; done'
        )

    def arrived(self, remote: str, sha256: str) -> int:
        """See `PhoneShell`."""
        sizes = self._pieces(remote, sha256)
        joined = sizes.pop(0, 0)
        return joined + sum(size for start, size in sizes.items() if start >= joined)

    def push(
        self,
        local: Path,
        remote: str,
        on_bytes: OnBytes = lambda count: None,
        *,
        sha256: str | None = None,
    ) -> None:
        """See `PhoneShell`; the file appears when the app has joined its pieces."""
        sha256 = sha256 or file_hash(local)
        self.shell(f"mkdir -p {shlex.quote(_folder(remote))}")
        pieces = f"{_folder(remote)}/{short_hash(sha256)}-"
        sizes = self._pieces(remote, sha256)
        if sizes.get(0, 0) > local.stat().st_size:  # not a part of it
            self._forget(pieces)
            sizes = {}
        joined = sizes[0] if sizes.get(0, 0) > PIECE_BYTES else 0  # by the app, which broke off
        digest, done = sha256_of(), 0
        on_bytes(done)
        with local.open("rb") as file:
            while block := file.read(PIECE_BYTES):
                digest.update(block)
                piece = f"{pieces}{done}"
                is_there = sizes.get(done) == len(block) and self._is_right(piece, block)
                if done + len(block) > joined and not is_there:
                    self._send_piece(local, block, done, piece)
                done += len(block)
                on_bytes(done)
        if digest.hexdigest() != sha256:
            self._forget(pieces)
            raise altered(local, sha256)

    def _send_piece(self, local: Path, block: bytes, start: int, piece: str) -> None:
        """Sends a piece until it is there and right.

        Raises:
            PhoneError: the phone ran full, takes nothing, or does not come back.
        """
        problem = ""
        with scratch_folder() as scratch:
            (scratch / "piece").write_bytes(block)
            for _ in range(TRIES):
                problem = "the connection broke"
                try:
                    self.send_file(scratch / "piece", piece)
                except PhoneError as error:
                    problem = str(error)
                    self.await_return(problem)
                is_whole = self.size(piece) == len(block)
                if is_whole and self._is_right(piece, block):
                    return
                self.try_shell(f"rm -f {shlex.quote(piece)}")
                if is_whole:
                    raise self._damaged(local)
                if FULL in problem.lower():
                    self._forget(piece.removesuffix(str(start)))
                    raise self._full(local, problem)
        raise self._stuck(local, start, problem)

    def _is_right(self, piece: str, block: bytes) -> bool:
        """Returns whether a piece has its hash, as far as the phone can tell."""
        return self.sha256(piece, len(block)) in (None, sha256_of(block).hexdigest())

    def _pieces(self, remote: str, sha256: str) -> dict[int, int]:
        """Returns the sizes of a file's pieces by their starts."""
        said = self.shell(
            f"cd {shlex.quote(_folder(remote))} 2>/dev/null || exit 0; "
            f'for piece in {short_hash(sha256)}-*; do [ -f "$piece" ] && '
            'echo "$piece $(stat -c %s "$piece")"; done; true'
        )
        found = re.findall(r"^[0-9a-z]+-(\d+) (\d+)\s*$", said, re.M)
        return {int(start): int(size) for start, size in found}

    def _forget(self, pieces: str) -> None:
        """Removes pieces. Args: pieces: what their paths begin with."""
        self.try_shell(f"rm -f {shlex.quote(pieces)}*")

    def _why(self, said: ToolResult) -> str:
        """Returns the words for what went wrong; raises the error where another try is in vain."""
        reason = super()._why(said)
        why = next((why for code, why in _WHY.items() if code in reason), None)
        if why is not None:
            raise AppFilesError(f"{self.serial}: {self.app}: {why} ({reason})")
        return reason


def _folder(remote: str) -> str:
    return f"{remote.rpartition('/')[0]}/{PIECES}"
