"""The APK, taken apart by the tools that Android's makers check APKs with."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs
from PIL import Image

from android.build.apk_info import ApkInfo
from android.build.builder import (
    PAGE,
    PackageError,
    build_apk,
    build_unsigned,
    plan_package,
    version_code,
)
from android.build.signing import Key, debug_key, own_key
from android.build.tools import ToolError, package, run
from convert.bundle.errors import BundleError
from convert.bundle.manifest import Bundle
from convert.checkpoint.config import CONFIGS
from convert.cli import main
from runtime.engine_client.client import EngineClient
from runtime.engine_client.protocol import Field
from tests.support.elf import INTERPRETER, LOAD, Elf
from tests.support.needs import need_qemu

LIMIT = 4 << 20  # bytes of an APK without weights
PAGE_BYTES = 16384  # of newer phones
BUNDLE = "assets/bundle"
_TURNED = 0x80 | 0x400 | 0x800 | 0x100  # orientation, screenSize, smallestScreenSize, screenLayout
_FOLDERS = {"root", "file", "database", "sharedpref", "external"}  # as Android's backup names them
_FOLDERS |= {f"device_{name}" for name in _FOLDERS - {"external"}}
PICTURE = Path(__file__).resolve().parents[3] / "configs" / "demo" / "sample.png"


def test_what_android_reads(apk: Path) -> None:
    info = ApkInfo.read(apk)
    assert (info.package, info.min_sdk, info.target_sdk) == ("org.minicpmv.app", 26, 36)
    assert info.abis == ("arm64-v8a", "x86_64")
    assert info.schemes == ("v2", "v3")
    assert info.permissions == (  # INTERNET is not among them
        "android.permission.FOREGROUND_SERVICE",
        "android.permission.FOREGROUND_SERVICE_DATA_SYNC",
        "android.permission.POST_NOTIFICATIONS",
        "android.permission.WAKE_LOCK",
    )
    assert info.size < LIMIT
    badging = run(["aapt2", "dump", "badging", str(apk)], "")
    assert "launchable-activity: name='org.minicpmv.app.MainActivity'" in badging
    assert "locales: '--_--' 'zh'" in badging
    tree = _tree(apk, "AndroidManifest.xml")
    assert re.search(r"extractNativeLibs\(0x[0-9a-f]+\)=true", tree)
    assert not re.search(r"debuggable|usesCleartextTraffic", tree)
    # A turned screen does not start the activity anew, so an answer under way goes on.
    kept = re.search(r":configChanges\(\w+\)=0x(\w+)", tree)
    assert kept is not None and int(kept[1], 16) & _TURNED == _TURNED


def test_what_android_12_to_16_ask_for(apk: Path) -> None:
    """Attributes that older versions ignore, read back from the APK."""
    tree = _tree(apk, "AndroidManifest.xml")
    assert re.search(r":enableOnBackInvokedCallback\(0x[0-9a-f]+\)=true", tree)
    assert re.search(r":allowBackup\(0x[0-9a-f]+\)=false", tree)
    languages = _tree(apk, _resource(apk, tree, "localeConfig"))
    named = re.findall(r':name\(0x[0-9a-f]+\)="([^"]+)"', languages)
    badging = run(["aapt2", "dump", "badging", str(apk)], "")
    translated = re.findall(r"'(\w+)'", _line(badging, "locales:"))
    assert named == ["en", *translated]  # the app's texts without a suffix are English
    rules = _tree(apk, _resource(apk, tree, "dataExtractionRules"))
    ways = re.split(r"E: (?=cloud-backup|device-transfer)", rules)[1:]
    assert [way.split()[0] for way in ways] == ["cloud-backup", "device-transfer"]
    for way in ways:  # no folder of the app's is copied, wherever Android keeps it
        assert set(re.findall(r'domain="(\w+)"', way)) == _FOLDERS
        assert "path=" not in way and "include" not in way


def test_the_manifest_has_no_misspelt_elements(apk: Path) -> None:
    """aapt2 only warns of elements that it does not know: <queries> is newer than Debian's."""
    tree = _tree(apk, "AndroidManifest.xml")
    components = {"application", "activity", "service", "provider", "meta-data"}
    filters = {"intent-filter", "action", "category", "data", "queries", "intent"}
    top = {"manifest", "uses-sdk", "uses-permission", "uses-feature"}
    assert set(re.findall(r"E: ([\w-]+)", tree)) == components | filters | top
    parts = re.split(r"E: (queries|application) ", tree)
    asked = re.findall(r'"(android[\w.]+)" \(Raw', parts[parts.index("queries") + 1])
    assert asked == ["android.intent.action.TTS_SERVICE", "android.speech.action.RECOGNIZE_SPEECH"]


def _tree(apk: Path, name: str) -> str:
    return run(["aapt2", "dump", "xmltree", "--file", name, str(apk)], "")


def _line(text: str, begin: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(begin))


def _resource(apk: Path, tree: str, attribute: str) -> str:
    """Returns the name in the APK of the file that an attribute of the manifest refers to."""
    number = re.search(rf":{attribute}\(0x[0-9a-f]+\)=@(0x[0-9a-f]+)", tree)
    assert number is not None, attribute
    table = run(["aapt2", "dump", "resources", str(apk)], "")
    found = re.search(rf"resource {number[1]} .*?\(file\) (\S+)", table, re.DOTALL)
    assert found is not None, attribute
    return found[1]


def test_what_lies_in_it(apk: Path, bundle: Bundle) -> None:
    with zipfile.ZipFile(apk) as archive:
        names = set(archive.namelist())
        for path in PAGE.glob("*.js"):
            assert archive.read(f"assets/page/{path.name}") == path.read_bytes()
        for name in ("setting_ranges.json", "openai_fields.json"):
            assert archive.read(f"assets/configs/{name}") == (CONFIGS / name).read_bytes()
        notices = archive.read("assets/page/notices.txt").decode()
        assert "assets/bundle/weights.safetensors" not in names
        assert {"assets/bundle/bundle.json", "assets/bundle/tokenizer.model"} <= names
        assert not any("BRIDGE" in name or "engine/" in name for name in names)
        assert archive.getinfo("resources.arsc").compress_type == zipfile.ZIP_STORED
    for owner in ("apache-tvm", "SentencePiece", "musl", "Protocol Buffers", "LLVM libc++"):
        assert owner in notices
    run(["zipalign", "-c", "4", str(apk)], "not aligned")


def test_its_components_are_those_and_no_others(apk: Path) -> None:
    """Only the screen is open to other apps."""
    tree = _tree(apk, "AndroidManifest.xml")
    assert dict(_components(tree)) == {
        ("activity", ".MainActivity"): True,
        ("service", ".WorkService"): False,
        ("provider", ".PhotoProvider"): False,
    }
    filters = re.split(r"E: intent-filter", tree)[1:]
    named = [re.findall(r'E: (?:action|data)[^"]*"([^"]+)"', part) for part in filters]
    assert [[name.rpartition(".")[2] for name in part] for part in named] == [
        ["MAIN"],
        ["SEND", "SEND_MULTIPLE", "image/*"],
        ["VIEW", "image/*"],
    ]


def test_the_variant_with_a_server(bundle: Bundle, apk: Path, key: Key, tmp_path: Path) -> None:
    """It alone may open a port; besides, it has a service that no other app can start."""
    variant = tmp_path / "api.apk"
    build_apk(plan_package(bundle, None, embed=False, api=True), key, variant, _quiet, password="")
    ordinary, with_server = ApkInfo.read(apk), ApkInfo.read(variant)
    assert set(with_server.permissions) - set(ordinary.permissions) == {
        "android.permission.INTERNET",
        "android.permission.FOREGROUND_SERVICE_SPECIAL_USE",
    }
    assert set(ordinary.permissions) < set(with_server.permissions)
    services = dict(_components(_tree(variant, "AndroidManifest.xml")))
    assert services.pop(("service", ".ApiService")) is False
    assert services == dict(_components(_tree(apk, "AndroidManifest.xml")))
    tree = _tree(variant, "AndroidManifest.xml")
    assert re.search(r":foregroundServiceType\(\w+\)=0x40000000", tree)  # specialUse
    assert "android.app.PROPERTY_SPECIAL_USE_FGS_SUBTYPE" in tree


def _components(tree: str) -> Iterator[tuple[tuple[str, str], bool]]:
    """Yields kind and name of each component, and whether other apps can start it."""
    for part in re.split(r"\n\s+E: (?=\w)", tree):
        kind = part.split(maxsplit=1)[0]
        if kind in ("activity", "activity-alias", "service", "receiver", "provider"):
            name = re.search(r':name\(\w+\)="([^"]+)"', part)
            exported = re.search(r":exported\(\w+\)=(\w+)", part)
            assert name is not None and exported is not None, part
            yield (kind, name[1]), exported[1] == "true"


def test_for_phones_and_emulators(apk: Path, bundle: Bundle, tmp_path: Path, key: Key) -> None:
    """Without a wish all that the bundle has; else what is asked for."""
    with zipfile.ZipFile(apk) as archive:
        for abi, target in (("arm64-v8a", "android-arm64"), ("x86_64", "android-x86_64")):
            name = f"lib/{abi}/libengine.so"
            assert archive.read(name) == bundle.program(target).path.read_bytes()
            archive.extract(name, tmp_path)
            elf = Elf.read(tmp_path / name)
            assert (elf.machine, elf.needed) == (
                target.removeprefix("android-").replace("arm64", "aarch64"),
                (),
            )
            assert not any(s.kind == INTERPRETER for s in elf.segments)
            loaded = [s for s in elf.segments if s.kind == LOAD]
            assert all(s.alignment >= PAGE_BYTES for s in loaded)
            assert all((s.address - s.offset) % PAGE_BYTES == 0 for s in loaded)
    one = tmp_path / "one.apk"
    build_apk(plan_package(bundle, ["x86_64"], embed=False), key, one, _quiet, password="")
    assert ApkInfo.read(one).abis == ("x86_64",)


def test_the_engine_in_it_answers_as_the_pcs(demo: Path, key: Key, tmp_path: Path) -> None:
    """As Android does: unpacked, then run as it is, here by qemu; all comes from the APK."""
    apk, app = tmp_path / "demo.apk", tmp_path / "app"
    opened = Bundle.open(demo)
    build_apk(plan_package(opened, None, embed=True), key, apk, _quiet, password="")
    with zipfile.ZipFile(apk) as archive:
        archive.extractall(app)
    engine = app / "lib/arm64-v8a/libengine.so"
    engine.chmod(0o755)
    local = _answers([str(opened.program("host").path)], demo)
    phone = _answers([need_qemu(), "-cpu", "cortex-a76", str(engine)], app / BUNDLE)
    assert phone == local
    assert [text for text, _ in phone] == ["Red.", "红色。"]
    plain = tmp_path / "plain.apk"
    build_apk(plan_package(opened, None, embed=False), key, plain, _quiet, password="")
    assert plain.stat().st_size < LIMIT


def _answers(command: list[str], folder: Path) -> list[tuple[str, list[int]]]:
    """Asks about the demo's picture, always taking the likeliest token."""
    found = []
    with EngineClient(command) as client, Image.open(PICTURE) as picture:
        client.load(folder, window=256)
        name = client.image(picture.convert("RGB"))[Field.IMAGE]
        for question in ("What colour is the shape?", "这个图形是什么颜色？"):
            turn = [{"role": "user", "content": question}]
            answer = client.chat(turn, image=name, max_new_tokens=20)
            found.append((answer.text, answer.ids))
    return found


def test_same_inputs_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    digests = set()
    for name in ("one.apk", "two.apk"):
        build_unsigned(plan_package(bundle, None, embed=False), tmp_path / name, _quiet)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_embedded_weights(bundle: Bundle, tmp_path: Path) -> None:
    build_unsigned(plan_package(bundle, None, embed=True), tmp_path / "apk", _quiet)
    with zipfile.ZipFile(tmp_path / "apk") as archive:
        weights = archive.getinfo("assets/bundle/weights.safetensors")
    assert weights.compress_type == zipfile.ZIP_STORED
    assert weights.file_size == (bundle.path / "weights.safetensors").stat().st_size


def test_an_apk_for_what_the_bundle_lacks(bundle: Bundle) -> None:
    with pytest.raises(PackageError, match="ABI 'mips' is unknown; known: arm64-v8a, x86_64"):
        plan_package(bundle, ["mips"], embed=False)
    other = Bundle.open(bundle.path)
    phone = {"android-arm64": bundle.manifest.targets["android-arm64"]}
    other.manifest = structs.replace(bundle.manifest, targets=phone)
    with pytest.raises(BundleError, match="no program for target 'android-x86_64'"):
        plan_package(other, ["x86_64"], embed=False)
    host = {"host": next(iter(bundle.manifest.targets.values()))}
    other.manifest = structs.replace(bundle.manifest, targets=host)
    with pytest.raises(
        PackageError, match="only for host; convert again with --target host,android"
    ):
        plan_package(other, None, embed=False)


@pytest.mark.parametrize(
    ("name", "embed"),
    [("engine/android-arm64", False), ("tokenizer.model", False), ("weights.safetensors", True)],
)
def test_a_bundle_that_is_not_as_it_was_written(
    bundle: Bundle, tmp_path: Path, name: str, embed: bool
) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    plan = plan_package(Bundle.open(folder), None, embed=embed)
    with pytest.raises(PackageError, match=f"{name}: altered: its SHA-256 is not the manifest's"):
        build_unsigned(plan, tmp_path / "apk", _quiet)
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name}: truncated"):
        Bundle.open(folder)


def test_keys(bundle: Bundle, key: Key, apk: Path, tmp_path: Path) -> None:
    assert debug_key(key.keystore.parent) == key  # made once
    wrong = Key(keystore=key.keystore, alias=None, password="pass:wrong")
    with pytest.raises(ToolError, match=r"chat2\.apk: cannot be signed.*password was incorrect"):
        build_apk(
            plan_package(bundle, None, embed=False),
            wrong,
            tmp_path / "chat2.apk",
            _quiet,
            password="",
        )
    assert list(tmp_path.iterdir()) == []


def _quiet(stage: str, done: int, total: int) -> None:
    """Reports nothing."""


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"aapt2 is not installed.*sudo apt-get install aapt"):
        ApkInfo.read(Path(__file__))


def test_packages_are_fetched_by_maven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = package("junit")
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    monkeypatch.setenv("PATH", str(maven.parent), prepend=":")
    maven.write_text("#!/bin/sh\necho '[ERROR] no such place' >&2\nexit 1\n")
    maven.chmod(0o755)
    with pytest.raises(ToolError, match=r"junit-4\.13\.2\.jar: Maven could not.*no such place"):
        wanted.fetch(tmp_path)
    maven.write_text(
        '#!/bin/sh\nfor a; do case "$a" in -DoutputDirectory=*) '
        f'echo other > "${{a#*=}}/{wanted.file_name}";; esac; done\n'
    )
    with pytest.raises(ToolError, match="file does not have the SHA-256 8e495b"):
        wanted.fetch(tmp_path)
    assert not (tmp_path / "packages").exists()


def test_version_codes_grow() -> None:
    versions = "0.0.0.dev0 0.0.0 0.1.0 0.1.1.dev2 0.1.1 0.2.0 1.0.0.dev1 1.0.0 1.10.0".split()
    codes = [version_code(v) for v in versions]
    assert codes == sorted(set(codes))
    assert codes[0] == 1


def test_keys_of_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keystore, secret = tmp_path / "keys", tmp_path / "secret"
    with pytest.raises(ToolError, match="no such keystore"):
        own_key(keystore, None, None)
    keystore.touch()
    assert own_key(keystore, None, None).password == "stdin"
    for open_password in ("swordfish", "pass:swordfish", "env:"):
        with pytest.raises(ToolError, match="--key-pass: expected env:NAME") as caught:
            own_key(keystore, None, open_password)
        assert "swordfish" not in str(caught.value)
    with pytest.raises(ToolError, match="there is no variable SWORD"):
        own_key(keystore, None, "env:SWORD")
    monkeypatch.setenv("SWORD", "fish")
    assert own_key(keystore, "me", "env:SWORD").password == "env:SWORD"
    with pytest.raises(ToolError, match="there is no such file"):
        own_key(keystore, None, f"file:{secret}")
    secret.touch()
    assert own_key(keystore, None, f"file:{secret}").password == f"file:{secret}"


def test_the_command_refuses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bundle: Bundle
) -> None:
    assert main(["apk", str(tmp_path / "none")]) == 2
    assert "no such folder; expected a bundle's folder" in capsys.readouterr().err
    folder, command = str(tmp_path), ["apk", str(bundle.path), "-o", str(tmp_path / "a.apk")]
    refused = {
        ("-o", folder): f"{folder}: a folder; expected the name of an APK, such as {folder}/chat",
        ("--abi", "arm64-v8a, arm64"): "ABI 'arm64' is unknown",
        ("--abi", ""): "ABI '' is unknown",
        ("--key-alias", "me"): "need your own key; give it with --key",
        ("--key", str(tmp_path / "keys")): "no such keystore",
        ("--key", __file__): "--key needs --key-pass env:NAME or file:PATH if there is no term",
    }
    for arguments, said in refused.items():
        assert main([*command, *arguments]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_tells_what_it_made(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    output = tmp_path / "new" / "chat.apk"
    command = ["apk", str(bundle.path), "--abi", "arm64-v8a, x86_64", "-o", str(output), "--embed"]
    assert main(command) == 0
    out = capsys.readouterr().out
    for part in ("arm64-v8a, x86_64", "26 and later, made for 36", "v2 + v3", ", embedded"):
        assert part in out
    assert "This APK contains the weights of" in out  # not the demo's
    assert sorted(path.name for path in output.parent.iterdir()) == ["chat.apk"]
    assert main([*command, "--json"]) == 0  # in the place of the other
    assert json.loads(capsys.readouterr().out)["abis"] == ["arm64-v8a", "x86_64"]
