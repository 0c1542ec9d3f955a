"""The cache of compiled objects, and source packages."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from convert.source_package import SourcePackage
from convert.toolchain import BuildError, Compiler, Toolchain, Tree, Unit, cache_folder

TRIPLE = "x86_64-linux-musl"


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
    """Compiles; returns the objects, and how many of them were missing."""
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


@pytest.mark.parametrize("damage", ["truncated", "altered", "removed", "hash removed"])
def test_a_damaged_object_is_made_again(cache: Path, unit: Unit, damage: str) -> None:
    objects, _ = compiled(cache, unit)
    whole = objects[0].read_bytes()
    match damage:
        case "truncated":
            objects[0].write_bytes(whole[:100])
        case "altered":
            objects[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "removed":
            objects[0].unlink()
        case _:
            objects[0].with_suffix(".sha256").unlink()
    assert compiled(cache, unit) == (objects, 1)
    assert objects[0].read_bytes() == whole, "the same source gives the same object"


def test_whatever_an_object_follows_from_is_in_its_key(cache: Path, unit: Unit) -> None:
    compiled(cache, unit)
    assert compiled(cache, replace(unit, flags=("-Wall", "-DX")))[1] == 2
    assert compiled(cache, replace(unit, content="other headers"))[1] == 2
    (unit.trees[0].folder / "two.cc").write_text('extern "C" int two() { return 1 + 1; }\n')
    assert compiled(cache, unit)[1] == 1


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
    cache.mkdir()
    (cache / "zig").symlink_to(cache_folder() / "zig")  # where musl and libc++ are compiled already
    (unit.trees[0].folder / "two.cc").write_text("int three(); int main() { return three(); }\n")
    objects, _ = compiled(cache, unit)
    with (
        Toolchain(TRIPLE, cache=cache) as toolchain,
        pytest.raises(BuildError, match=r"^program: cannot be linked: .*undefined.*three"),
    ):
        toolchain.link(objects, tmp_path / "program")
    assert not list(tmp_path.glob("*program*"))


def test_a_compiler_is_called_alike_from_every_checkout(
    cache: Path, unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zig keeps libc++ and musl under keys that have its library's place in them, as it sees it."""
    script = 'echo "error: $(pwd) $ZIG_LIB_DIR $(readlink $ZIG_LIB_DIR)" >&2; exit 1'
    said = []
    for name in ("one", "two", "three"):
        library = tmp_path / name / "ziglang" / "lib"
        library.mkdir(parents=True)
        (tmp_path / name / "ziglang-1.0.dist-info").mkdir()
        monkeypatch.chdir(library)
        compiler = Compiler(
            name="zig",
            version="1.0",
            command=("sh", "-c", script),
            library=library,
            platform_flags=(),
            compile_flags=(),
            link_flags=(),
        )
        with (
            Toolchain(TRIPLE, compiler=compiler, cache=cache) as toolchain,
            pytest.raises(BuildError) as failed,
        ):
            toolchain.compile_libraries()
        said.append(str(failed.value).rpartition("error: ")[2])
        if name == "two":  # as when the first checkout has gone, or got another zig
            (tmp_path / "one" / "ziglang-1.0.dist-info").rmdir()
    first, third = (
        f"{cache / 'zig'} lib-1.0 {tmp_path / at / 'ziglang/lib'}" for at in ("one", "three")
    )
    assert said == [first, first, third]


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


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BuildError, match="MINICPMV_CACHE names another folder"),
        Toolchain(TRIPLE, cache=tmp_path / "file" / "cache"),
    ):
        pass


def test_the_environment_chooses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MINICPMV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "minicpmv"


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
