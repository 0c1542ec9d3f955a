"""Source packages from PyPI: downloaded once by pip, pinned by hash, unpacked temporarily."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convert.engine.toolchain import BuildError
from convert.support.cache import cache_folder, has_hash, pinned_file
from convert.support.scratch import scratch_folder


@dataclass(frozen=True, kw_only=True)
class SourcePackage:
    """A source distribution, pinned by its SHA-256."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Its file name on PyPI."""
        return f"{self.name}-{self.version}.tar.gz"

    def fetch(self, cache: Path | None = None) -> Path:
        """Returns the package's file; pip downloads it if the cache lacks it or has it damaged.

        Raises:
            BuildError: pip could not get it, or got another file.
            CacheError: the cache cannot be written.
        """
        kept = (cache or cache_folder()) / "packages" / self.file_name
        return pinned_file(kept, self.sha256, self._bring)

    @contextmanager
    def unpacked(self, cache: Path | None = None) -> Iterator[Path]:
        """Gives a temporary folder with the package's files.

        Raises:
            BuildError: as `fetch`, or a member that would lie outside the folder.
        """
        package = self.fetch(cache)
        with scratch_folder() as folder:
            with tarfile.open(package) as archive:
                for member in archive:
                    self._extract(archive, member, folder)
            yield folder / f"{self.name}-{self.version}"

    def _extract(self, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
        path = PurePosixPath(member.name)
        if member.isdir():
            return
        if not member.isfile() or path.is_absolute() or ".." in path.parts:
            raise BuildError(f"{self.file_name}: {member.name} is no file inside the package")
        content = archive.extractfile(member)
        assert content is not None, "a regular file has content"
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read())

    def _bring(self, folder: Path) -> Path:
        self._download(folder)
        found = folder / self.file_name
        if not has_hash(found, self.sha256):
            raise BuildError(
                f"{self.file_name}: pip did not bring the file with SHA-256 {self.sha256}"
            )
        return found

    def _download(self, folder: Path) -> None:
        """Asks pip, which checks the hash before it runs anything of the package.

        It only asks the package for its metadata; nothing is compiled or installed.
        """
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--no-deps", "--no-binary", self.name]
        command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            lines = done.stderr.splitlines() or ["no message"]
            errors = [line for line in lines if "ERROR" in line] or lines[-1:]
            raise BuildError(
                f"{self.file_name}: pip could not download it: {errors[0].strip()}; it is needed "
                "once, then the cache has it"
            )
