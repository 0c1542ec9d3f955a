"""A phone as a place for an engine: the bundle is pushed there once, and the engine runs there."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.bundle.errors import BundleError
from convert.bundle.manifest import MANIFEST, Bundle, FileRecord
from convert.bundle.targets import ABIS
from convert.support.progress import Progress
from runtime.engine_client.client import SLOW_CANCEL_SECONDS, EngineClient
from runtime.engine_client.phone_shell import EngineWork, PhoneError, PhoneInfo, PhoneShell
from runtime.engine_client.place import may_name_a_file, threads_environment

ROOT = "/data/local/tmp/minicpmv"  # where a shell may keep and run files
_END_MARK = "minicpmv-engine-end"  # what the phone's shell says last
_STAMP = ".sha256"  # of a file that has arrived whole: its name with this holds its hash


@dataclass(frozen=True)
class PhoneFiles:
    """A folder on a phone through which the files of requests go."""

    shell: PhoneShell
    folder: str  # the engine's working folder
    name: str  # of the exchange in it

    def send(self, path: Path) -> str:
        """See `Files`."""
        self.shell.push(path, f"{self.folder}/{self.room(path)}")
        return self.room(path)

    def room(self, path: Path) -> str:
        """See `Files`."""
        return f"{self.name}/{path.name}"

    def fetch(self, path: Path) -> None:
        """See `Files`."""
        self.shell.pull(f"{self.folder}/{self.room(path)}", path)


class Phone:
    """A phone, board or emulator that a tool such as adb can reach."""

    def __init__(self, bundle: Bundle, shell: PhoneShell, threads: int | None) -> None:
        """Finds out which of a bundle's engines the phone can run.

        Raises:
            BundleError: the bundle has none for it.
            PhoneError: the phone's processor is of another kind, or the phone does not answer.
        """
        self.engine, self.description = shell.engine, f"engine of phone {shell.serial}"
        self.bundle = Path()  # the engine is started in it
        self._shell, self._source = shell, bundle
        self.target = target_of(shell.serial, shell.info())
        self._local = bundle.program(self.target)
        self._program = bundle.manifest.targets[self.target].program
        identity = bundle.manifest.targets[self.target].program_id
        if not may_name_a_file(identity):
            raise BundleError(f"{bundle.path}: program id {identity!r:.40}; expected a hash")
        # A bundle with the same program takes its predecessor's place: phones are small.
        self._folder = f"{ROOT}/{identity[:16]}"
        self._environment = threads_environment(threads)

    def prepare(self, progress: Progress) -> None:
        """Pushes what is not there already with the same size and hash; see `Place`.

        The engine's hash is that of the file itself, not what was noted when it arrived.

        Raises:
            PhoneError: a file could not be copied, or the phone has no room for it.
            BundleError: the engine is not the manifest's.
        """
        files = self._files()
        missing = self._missing(files)
        if self._program not in missing and self._is_altered(self._program, files):
            missing.append(self._program)
        if not missing:
            return
        if self._program in missing:
            self._local.check()
        total = sum(files[name].size for name in missing)
        paths = {name: f"{self._folder}/{name}" for name in missing}
        self._make_folders(paths.values())
        for name, remote in paths.items():
            self._shell.shell(f"rm -f {shlex.quote(remote + _STAMP)}")
            self._shell.clear(remote, files[name].sha256)
        self._require_room(
            total - sum(self._shell.arrived(paths[n], files[n].sha256) for n in paths)
        )
        done = 0
        for name, remote in paths.items():

            def arrived(count: int, before: int = done) -> None:
                progress("push to the phone", before + count, total)

            self._shell.push(self._source.path / name, remote, arrived, sha256=files[name].sha256)
            stamp = shlex.quote(remote + _STAMP)
            self._shell.shell(f"echo {shlex.quote(files[name].sha256)} > {stamp}")
            done += files[name].size

    def brought(self, progress: Progress) -> dict[str, bool]:
        """See `Place`; the next `prepare` pushes again what is not."""
        files = self._files()
        total, done = sum(file.size for file in files.values()), 0
        found = {}
        for name, file in files.items():
            progress("hash on the phone", done, total)
            found[name] = not self._is_altered(name, files)
            if not found[name]:
                self._shell.shell(f"rm -f {shlex.quote(f'{self._folder}/{name}{_STAMP}')}")
            done += file.size
        progress("hash on the phone", total, total)
        return found

    def start(self) -> EngineClient:
        """See `Place`."""
        exchange = f"exchange-{secrets.token_hex(8)}"
        program = shlex.quote(f"./{self._program}")
        variables = "".join(f"{name}={value} " for name, value in self._environment.items())
        work = EngineWork(
            folder=self._folder,
            exchange=exchange,
            program=program,
            variables=variables,
            end_mark=_END_MARK,
        )
        return EngineClient(
            self._shell.engine_command(work),
            name=self.description,
            files=PhoneFiles(self._shell, self._folder, exchange),
            kinds_file="kinds",
            end_mark=_END_MARK,
            cancel_seconds=SLOW_CANCEL_SECONDS,
        )

    def await_return(self, reason: str) -> None:
        """See `Device`."""
        self._shell.await_return(reason)

    def _is_altered(self, name: str, files: Mapping[str, FileRecord]) -> bool:
        """Says whether a file on the phone has another hash; not where the phone cannot tell."""
        found = self._shell.sha256(f"{self._folder}/{name}", files[name].size)
        return found is not None and found != files[name].sha256

    def _make_folders(self, paths: Iterable[str]) -> None:
        folders = {shlex.quote(path.rpartition("/")[0]) for path in paths}
        self._shell.shell(f"mkdir -p {' '.join(sorted(folders))}")

    def _require_room(self, needed: int) -> None:
        free = self._shell.free_bytes(self._folder)
        if free < needed:
            raise PhoneError(
                f"{self._shell.serial}: {free / 2**20:,.0f} MiB are free below {self._folder}; "
                f"{needed / 2**20:,.0f} MiB are needed there"
            )

    def _files(self) -> dict[str, FileRecord]:
        """Returns what the phone needs of the bundle: all but other targets' programs."""
        manifest = self._source.manifest
        others = {record.program for record in manifest.targets.values()} - {self._program}
        files = {name: file for name, file in manifest.files.items() if name not in others}
        return files | {MANIFEST: FileRecord.of(self._source.path / MANIFEST)}

    def _missing(self, files: dict[str, FileRecord]) -> list[str]:
        """Returns the files that the phone lacks, or has with another content."""
        names = " ".join(shlex.quote(name) for name in files)
        script = (
            f"cd {self._folder} 2>/dev/null || exit 0; for file in {names}; do "
            f'echo "$(stat -c %s "$file" 2>/dev/null) $(cat "$file{_STAMP}" 2>/dev/null)"; done'
        )
        lines = self._shell.shell(script).splitlines() or [""] * len(files)
        if len(lines) != len(files):
            raise PhoneError(f"{self._shell.serial}: its shell does not say which files it has")
        return [
            name
            for (name, file), line in zip(files.items(), lines, strict=True)
            if line.split() != [str(file.size), file.sha256]
        ]


def target_of(serial: str, phone: PhoneInfo) -> str:
    """Returns the target whose program a phone can run.

    Raises:
        PhoneError: none.
    """
    for abi in phone.abis:  # its own first, then those that it imitates
        if abi in ABIS:
            return ABIS[abi]
    raise PhoneError(
        f"phone {serial} runs {', '.join(phone.abis)}; the engine is for {' and '.join(ABIS)}: "
        "a 64-bit system"
    )
