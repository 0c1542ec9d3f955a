"""Runs the app on Android's own code, on this PC: Robolectric, with the demo's engine.

Robolectric loads Android's jars, replaces their native parts, and starts the app from a manifest
and an APK of resources: those of our own build. The tests are in
`tests/android/java/org/minicpmv/app`, and for the library and its sample app in `sample`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from android.build.app_manifest import app_manifest
from android.build.builder import APP, PackagePlan, assets, compile_java, link_resources
from android.build.library import LIBRARY, build_aar
from android.build.phones import MIN_SDK, TARGET_SDK
from android.build.tools import MavenPackage, fetch, java, package, packages, program
from android.build.tools import run as run_tool
from convert.bundle.manifest import Bundle
from convert.checkpoint.config import CONFIGS
from convert.support.progress import silent
from tests.android.app_pictures import write_pictures
from tests.support.java import lending

JAVA = Path(__file__).parent / "java"
SAMPLE_APP = LIBRARY / "sample"
SDKS = {26: "android-8", 34: "android-all"}  # Android versions, and the jars with their code
SAMPLE = CONFIGS / "demo" / "sample.png"
CONFIG, API_CONFIG = "config", "config-api"
_PROPERTIES = (
    "com/android/tools/test_config.properties"  # Robolectric looks for it on the class path
)


def libraries() -> list[MavenPackage]:
    """Lists Robolectric, JUnit and what they need."""
    return [p for p in packages(("tests",)) if p.artifact != "android-all"]


def build(bundle: Bundle, folder: Path) -> None:
    """Makes what `run` needs: the compiled app and tests, resources, assets, pictures, Android."""
    jars = _jars(folder / "libraries")
    for config, api in ((CONFIG, False), (API_CONFIG, True)):
        _install_app(bundle, folder / config, api=api)
    sources = [APP / "java", folder / CONFIG / "generated", *_tests("app")]
    compile_java(sources, folder / "classes", *jars)
    _link_android(folder)
    write_pictures(folder / "pictures")


def _install_app(bundle: Bundle, folder: Path, *, api: bool) -> None:
    """Writes a configuration of the app: its manifest, resources and assets."""
    folder.mkdir()
    link_resources(folder, api=api)
    plan = PackagePlan(bundle=bundle, abis=(), embed=False, api=api)
    with zipfile.ZipFile(folder / "resources.apk", "a") as archive:
        for name, content in assets(plan):
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    _install(folder, app_manifest(APP, api=api), "org.minicpmv.app")


def build_sample(bundle: Bundle, folder: Path) -> None:
    """Makes what `run` needs for the sample app: the library as an AAR, the app built on it."""
    jars = _jars(folder / "libraries")
    config = folder / CONFIG
    config.mkdir()
    aar, resources = folder / "minicpmv.aar", config / "resources.apk"
    build_aar(PackagePlan(bundle=bundle, abis=(), embed=False), aar, silent)
    classes = folder / "libraries" / "minicpmv.jar"
    android = str(package("android-all").fetch())
    manifest = SAMPLE_APP / "AndroidManifest.xml"
    command = [program("aapt2"), "link", "-I", android, "-o", str(resources)]
    command += ["--manifest", str(manifest), "--min-sdk-version", str(MIN_SDK)]
    run_tool([*command, "--target-sdk-version", str(TARGET_SDK)], "the sample does not link")
    with zipfile.ZipFile(aar) as library, zipfile.ZipFile(resources, "a") as archive:
        classes.write_bytes(library.read("classes.jar"))
        for name in library.namelist():
            if name.startswith("assets/"):
                archive.writestr(name, library.read(name))
    compile_java([SAMPLE_APP / "java", *_tests("sample")], folder / "classes", classes, *jars)
    _install(config, manifest.read_text("utf-8"), "org.minicpmv.sample")
    _link_android(folder)


def _tests(name: str) -> list[Path]:
    return [JAVA / "org" / "minicpmv" / part for part in (name, "system")]


def _install(config: Path, manifest: str, package_name: str) -> None:
    """Writes a configuration: what is installed."""
    properties = config / _PROPERTIES
    properties.parent.mkdir(parents=True)
    properties.write_text(
        f"android_merged_manifest={_manifest(manifest, config)}\n"
        f"android_resource_apk={config / 'resources.apk'}\n"
        f"android_custom_package={package_name}\n"
    )


def _link_android(folder: Path) -> None:
    """Tells Robolectric where Android is."""
    (folder / "android").mkdir()
    for jar in fetch([package(name) for name in SDKS.values()]):
        (folder / "android" / jar.name).symlink_to(jar)


def run(
    folder: Path,
    bundle: Bundle,
    sdk: int,
    tests: list[str],
    *,
    config: str = CONFIG,
    **properties: str,
) -> str:
    """Runs JUnit classes on one version of Android; returns the output of tests that pass.

    Args:
        folder: what `build` or `build_sample` made.
        bundle: has the engine.
        sdk: the version.
        tests: the classes, below `org.minicpmv`.
        config: what is installed; `API_CONFIG`: the variant with a server.
        properties: of Java, for the tests.
    """
    jars = [*sorted((folder / "libraries").glob("*.jar")), package("android-all").kept()]
    classpath = [folder / config, JAVA, folder / "classes", *jars]  # Android's jar comes last
    temporary = folder / f"tmp-{sdk}"
    temporary.mkdir(exist_ok=True)
    command = [*java(), "--add-opens", "java.base/java.io=ALL-UNNAMED"]
    command += [
        "-Drobolectric.offline=true",
        f"-Drobolectric.dependency.dir={folder / 'android'}",
        "-Drobolectric.usePreinstrumentedJars=false",  # the cache has the plain jars, to compile
        f"-Drobolectric.enabledSdks={sdk}",
        f"-Djava.io.tmpdir={temporary}",
        f"-Dbundle={bundle.path}",
        f"-Dengine={bundle.program('host').path}",
        f"-Dpicture={SAMPLE}",
        f"-Dpictures={folder / 'pictures'}",
        *lending(),
        *(f"-D{name}={value}" for name, value in properties.items()),
    ]
    command += ["-cp", os.pathsep.join(map(str, classpath)), "org.junit.runner.JUnitCore"]
    command += [f"org.minicpmv.{name}" for name in tests]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _jars(folder: Path) -> list[Path]:
    """Puts the libraries into a folder, those of an `aar` unpacked."""
    folder.mkdir()
    found = []
    for library in libraries():
        kept, jar = library.fetch(), folder / f"{library.name}.jar"
        if library.packaging == "aar":
            with zipfile.ZipFile(kept) as archive, archive.open("classes.jar") as source:
                with jar.open("wb") as target:
                    shutil.copyfileobj(source, target)
        else:
            jar.symlink_to(kept)
        found.append(jar)
    return found


def _manifest(text: str, folder: Path) -> Path:
    """Writes the manifest with the versions of Android that aapt2 puts into the APK's."""
    sdk = f'<uses-sdk android:minSdkVersion="{MIN_SDK}" android:targetSdkVersion="{TARGET_SDK}" />'
    merged = folder / "AndroidManifest.xml"
    merged.write_text(text.replace("<application", f"{sdk}\n  <application", 1), "utf-8")
    return merged
