"""The cache of compiled objects, and source packages."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from convert.engine.source_package import SourcePackage
from convert.engine.toolchain import BuildError, Compiler, Toolchain, Tree, Unit
from convert.support.cache import CacheError, cache_folder
from tests.support.damage import flip

TRIPLE = "x86_64-linux-musl"
# What zig links a program with.
LINKED = ("rcrt1.o", "libc++abi.a", "libc++.a", "libunwind.a", "libc.a", "libzigc.a")
LINKED = (*LINKED, "libcompiler_rt.a")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    folder = tmp_path / "sources"
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "one.h").write_text("#define ONE 1\n")
    (folder / "one.cc").write_text(
        '#include <one.h>\nextern "C" const char* where() { return __FILE__; }\n'
        'extern "C" int one() { return ONE; }\n'
    )
    (folder / "two.cc").write_text('extern "C" int two() { return 2; }\n')
    return Unit(
        name="numbers",
        trees=(Tree(name="numbers", folder=folder),),
        sources=("one.cc", "two.cc"),
        flags=("-Wall",),
        includes=("numbers/include",),
        content="",
    )


def compiled(cache: Path, unit: Unit) -> tuple[list[Path], int]:
    """Compiles; returns the objects, and how many were not in the cache."""
    heard: list[tuple[int, int]] = []
    with Toolchain(TRIPLE, cache=cache, jobs=1) as toolchain:
        objects = toolchain.compile(unit, lambda _, done, total: heard.append((done, total)))
    assert all(path.read_bytes()[:4] == b"\x7fELF" for path in objects)
    assert heard == [(i, len(heard) - 1) for i in range(len(heard))], "every file is told of"
    return objects, max(0, len(heard) - 1)


def test_what_is_there_is_not_compiled_again(cache: Path, unit: Unit) -> None:
    objects, count = compiled(cache, unit)
    assert count == 2
    assert compiled(cache, unit) == (objects, 0)


DAMAGES = ["truncated", "altered", "removed", "hash removed", "hash altered"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_made_again(
    cache: Path, unit: Unit, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    objects, _ = compiled(cache, unit)
    whole = objects[0].read_bytes()
    match damage:
        case "truncated":
            objects[0].write_bytes(whole[:100])
        case "altered":
            flip(objects[0])
        case "removed":
            objects[0].unlink()
        case "hash altered":
            flip(objects[0].with_suffix(".sha256"))
        case _:
            objects[0].with_suffix(".sha256").unlink()
    assert compiled(cache, unit) == (objects, 1)
    notices = [] if damage == "removed" else [f"{objects[0]}: damaged; compiled again"]
    assert caplog.messages == notices
    assert objects[0].read_bytes() == whole, "the same source gives the same object"


def test_whatever_an_object_follows_from_is_in_its_key(cache: Path, unit: Unit) -> None:
    compiled(cache, unit)
    assert compiled(cache, replace(unit, flags=("-Wall", "-DX")))[1] == 2
    assert compiled(cache, replace(unit, content="other headers"))[1] == 2
    (unit.trees[0].folder / "two.cc").write_text('extern "C" int two() { return 1 + 1; }\n')
    assert compiled(cache, unit)[1] == 1


def test_a_cache_that_is_only_read_serves(
    cache: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "read-only")

    objects, _ = compiled(cache, unit)
    for path in objects:
        os.utime(path, (0, 0))
    for name in ("replace", "utime"):
        monkeypatch.setattr(os, name, refuse)
    assert compiled(cache, unit) == (objects, 0)


def test_what_nobody_uses_goes(cache: Path, unit: Unit) -> None:
    old, _ = compiled(cache, unit)
    for path in old[0].parent.iterdir():
        os.utime(path, (0, 0))
    objects, count = compiled(cache, replace(unit, flags=("-DX",)))
    assert count == 2
    assert set(old[0].parent.glob("*.o")) == set(objects)


def test_an_object_does_not_tell_where_it_was_made(cache: Path, unit: Unit, tmp_path: Path) -> None:
    objects, _ = compiled(cache, unit)
    assert b"numbers/one.cc" in objects[0].read_bytes()
    assert str(tmp_path).encode() not in objects[0].read_bytes()


def test_a_mistake_in_a_source_is_named(cache: Path, unit: Unit) -> None:
    (unit.trees[0].folder / "two.cc").write_text("int two( { }\n")
    with pytest.raises(BuildError, match=r"^numbers: two.cc does not compile for .*:1:\d+: error"):
        compiled(cache, unit)
    assert not [path for path in cache.rglob("*partial*")]


def test_a_missing_symbol_is_named(cache: Path, unit: Unit, tmp_path: Path) -> None:
    name = f"libraries-{TRIPLE}"
    cache.mkdir()
    (cache_folder() / name).mkdir(parents=True, exist_ok=True)
    (cache / name).symlink_to(cache_folder() / name)  # where musl and libc++ are compiled already
    (unit.trees[0].folder / "two.cc").write_text("int three(); int main() { return three(); }\n")
    objects, _ = compiled(cache, unit)
    with (
        Toolchain(TRIPLE, cache=cache) as toolchain,
        pytest.raises(BuildError, match=r"^program: cannot be linked: .*undefined.*three"),
    ):
        toolchain.link(objects, tmp_path / "program")
    assert not list(tmp_path.glob("*program*"))


class Zig:
    """A fake zig in some folder; the contents of its libraries record how it was run."""

    SCRIPT = """
echo ran >> {log}
mkdir -p global/o/1
for name in {names}; do echo "{text} $(pwd -P | wc -l) $ZIG_LIB_DIR" > global/o/1/$name; done
echo "ld.lld -r global/o/0/rcrt1.o" >&2
echo "ld.lld -o empty global/o/1/{ordered}" >&2
"""

    def __init__(self, home: Path) -> None:
        self._home, self.log = home, home / "log"
        self.log.touch()

    def compiler(self, place: str, names: Sequence[str] = LINKED, text: str = "") -> Compiler:
        """Installs it; `names` are the libraries that it links."""
        library = self._home / place / "lib"
        library.mkdir(parents=True, exist_ok=True)
        script = self.SCRIPT.format(
            log=self.log, names=" ".join(names), text=text, ordered=" global/o/1/".join(names)
        )
        return Compiler(
            name="zig",
            version="1.0",
            command=("sh", "-c", script),
            linker=("cat",),
            library=library,
            platform_flags=(),
            compile_flags=(),
            link_flags=(),
        )

    @property
    def times(self) -> int:
        return len(self.log.read_text().splitlines())


def libraries(compiler: Compiler, cache: Path) -> list[bytes]:
    with Toolchain(TRIPLE, compiler=compiler, cache=cache) as toolchain:
        before, behind = toolchain.compile_libraries()
        assert [path.name for path in (*before, *behind)] == list(LINKED)
        return [path.read_bytes() for path in (*before, *behind)]


def test_every_checkout_has_the_same_libraries(cache: Path, tmp_path: Path) -> None:
    zig = Zig(tmp_path)
    first = libraries(zig.compiler("one"), cache)
    assert libraries(zig.compiler("two"), cache) == first
    assert zig.times == 1
    assert libraries(zig.compiler("three"), tmp_path / "another cache") == first
    assert libraries(replace(zig.compiler("one"), version="1.1"), cache) == first
    assert zig.times == 3


@pytest.mark.parametrize("name", [*LINKED, "objects.json"])
def test_a_damaged_library_is_made_again(
    cache: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    zig = Zig(tmp_path)
    whole = libraries(zig.compiler("one"), cache)
    (kept,) = cache.glob(f"libraries-{TRIPLE}/*/{name}")
    flip(kept)
    assert libraries(zig.compiler("one"), cache) == whole
    assert caplog.messages == [f"{kept.parent}: damaged; compiled again"]
    assert libraries(zig.compiler("one"), cache) == whole
    assert (zig.times, len(caplog.messages)) == (2, 1)


def test_another_zig_is_named(cache: Path, tmp_path: Path) -> None:
    zig = Zig(tmp_path)
    for names in (LINKED[1:], LINKED[::-1]):
        with pytest.raises(BuildError, match=r"^zig 1\.0 links with .*; expected rcrt1\.o libc"):
            libraries(zig.compiler("one", names), cache)
    gone = replace(zig.compiler("one"), command=(str(tmp_path / "zig"),))
    with pytest.raises(BuildError, match=r"cannot be built: .*zig: No such file"):
        libraries(gone, cache)
    assert not list(cache.glob("libraries-*/*"))


def test_relative_places(cache: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unit.trees[0].folder
    monkeypatch.chdir(folder.parent)
    near = replace(unit, trees=(Tree(name="numbers", folder=Path(folder.name)),))
    objects, _ = compiled(Path(os.path.relpath(cache)), near)
    assert b"numbers/one.cc" in objects[0].read_bytes()
    assert compiled(cache, unit) == (objects, 0)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(BuildError, match=r"^pdp11-unix: .*known architectures: x86_64, aarch64"):
        Toolchain("pdp11-unix")


def test_a_cache_that_cannot_be_written(unit: Unit, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    with pytest.raises(CacheError, match=r"cannot be written: .*let MINICPMV_CACHE name another"):
        compiled(cache, unit)
    with pytest.raises(CacheError, match=r"cannot be written: .*let MINICPMV_CACHE name another"):
        libraries(Zig(tmp_path).compiler("one"), cache)


def test_the_environment_chooses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MINICPMV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "minicpmv"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):  # which the standard says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "minicpmv"


def package_of(members: dict[str, bytes], folder: Path) -> SourcePackage:
    """Writes a package into a cache folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    package = SourcePackage(name="thing", version="1.0", sha256=digest)
    (folder / "packages").mkdir(parents=True)
    (folder / "packages" / package.file_name).write_bytes(buffer.getvalue())
    return package


def test_a_package_is_unpacked_for_a_while(cache: Path) -> None:
    package = package_of({"thing-1.0/a/b.txt": b"text"}, cache)
    with package.unpacked(cache) as folder:
        assert (folder / "a" / "b.txt").read_bytes() == b"text"
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "thing-1.0/../../outside"])
def test_a_package_stays_in_its_folder(cache: Path, name: str) -> None:
    package = package_of({name: b"text"}, cache)
    with pytest.raises(BuildError, match="is no file inside the package"), package.unpacked(cache):
        pass


def test_a_damaged_package_is_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = package_of({"thing-1.0/a": b"text"}, cache)
    kept = cache / "packages" / package.file_name
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    monkeypatch.setattr(
        SourcePackage,
        "_download",
        lambda self, folder: (folder / self.file_name).write_bytes(whole),
    )
    assert package.fetch(cache).read_bytes() == whole
    kept.unlink()
    whole += b"altered"
    with pytest.raises(BuildError, match=f"the file with SHA-256 {package.sha256}"):
        package.fetch(cache)
    assert not kept.exists()
