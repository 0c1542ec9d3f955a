"""All API that the app calls exists on Android 14, and on Android 8 unless guarded by a check."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from android.build.tools import package, run
from tests.android.class_file import (
    Jar,
    JavaClass,
    Member,
    classes_in,
    code_of,
    is_there,
    references_in,
)

# API that Android 8 lacks, with the level that the code checks: the one that introduced it, or a
# later one that comes with more.
NEWER = {
    "org/minicpmv/app/MainActivity.getOnBackInvokedDispatcher:()"
    "Landroid/window/OnBackInvokedDispatcher;": 33,
    "android/window/OnBackInvokedDispatcher.registerOnBackInvokedCallback:"
    "(ILandroid/window/OnBackInvokedCallback;)V": 33,
    "android/window/OnBackInvokedDispatcher.unregisterOnBackInvokedCallback:"
    "(Landroid/window/OnBackInvokedCallback;)V": 33,
    "android/view/Window.setDecorFitsSystemWindows:(Z)V": 30,
    "android/view/Window.setNavigationBarContrastEnforced:(Z)V": 30,
    "android/view/WindowManager$LayoutParams.layoutInDisplayCutoutMode:I": 30,
    "android/view/Window.getInsetsController:()Landroid/view/WindowInsetsController;": 30,
    "android/view/WindowInsetsController.setSystemBarsAppearance:(II)V": 30,
    "android/view/WindowInsets.getInsets:(I)Landroid/graphics/Insets;": 30,
    "android/view/WindowInsets$Type.displayCutout:()I": 30,
    "android/view/WindowInsets$Type.ime:()I": 30,
    "android/view/WindowInsets$Type.systemBars:()I": 30,
    "android/view/WindowInsets.CONSUMED:Landroid/view/WindowInsets;": 30,
    "android/graphics/Insets.top:I": 30,
    "android/graphics/Insets.right:I": 30,
    "android/graphics/Insets.bottom:I": 30,
    "android/graphics/Insets.left:I": 30,
    "android/os/Build.SOC_MODEL:Ljava/lang/String;": 31,
    "android/os/PowerManager.addThermalStatusListener:"
    "(Landroid/os/PowerManager$OnThermalStatusChangedListener;)V": 29,
    "android/os/PowerManager.removeThermalStatusListener:"
    "(Landroid/os/PowerManager$OnThermalStatusChangedListener;)V": 29,
    "android/os/PowerManager.getCurrentThermalStatus:()I": 29,
    "org/minicpmv/app/ApiService.startForeground:(ILandroid/app/Notification;I)V": 34,
    "org/minicpmv/app/WorkService.startForeground:(ILandroid/app/Notification;I)V": 29,
}
# Java packages that Android 8 also has. `javac --release 8` checks their contents.
JAVA = {
    "java/math",
    "java/io",
    "java/lang",
    "java/net",
    "java/nio",
    "java/nio/channels",
    "java/nio/charset",
    "java/nio/file",
    "java/nio/file/attribute",
    "java/security",
    "java/text",
    "java/util",
    "java/util/concurrent",
    "java/util/concurrent/atomic",
    "java/util/regex",
    "java/util/zip",
}


@pytest.fixture(scope="module")
def dump(apk: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dex")
    with zipfile.ZipFile(apk) as archive:
        archive.extract("classes.dex", folder)
    return run(["dexdump", "-d", str(folder / "classes.dex")], "")


@pytest.fixture(scope="module")
def ours(dump: str) -> dict[str, JavaClass]:
    return classes_in(dump)


@pytest.fixture(scope="module")
def newest(java_tools: None) -> Jar:
    return Jar(package("android-all").fetch())


@pytest.fixture(scope="module")
def oldest(java_tools: None) -> Jar:
    return Jar(package("android-8").fetch())


def test_the_classes_are_those_that_the_manifest_names(
    dump: str, ours: dict[str, JavaClass]
) -> None:
    for name in (
        "App",
        "MainActivity",
        "WorkService",
        "ApiService",
        "PhotoProvider",
        "Bridge",
        "PageClient",
    ):
        assert f"org/minicpmv/app/{name}" in ours
    assert "invoke-custom" not in dump  # an instruction that Android 8 lacks
    assert {name.rpartition("/")[0] for name in ours} == {
        f"org/minicpmv/{part}" for part in ("api", "app", "core", "system")
    }


def test_what_is_called_exists(dump: str, ours: dict[str, JavaClass], newest: Jar) -> None:
    called = references_in(dump)
    assert len([m for m in called if m.owner.startswith("android/")]) > 100
    assert [str(m) for m in called if not is_there(m, ours, newest)] == []
    assert {m.owner.rpartition("/")[0] for m in called if m.owner.startswith("java")} <= JAVA


def test_what_android_8_lacks_is_asked_for(
    dump: str, ours: dict[str, JavaClass], oldest: Jar
) -> None:
    lacks = {str(m) for m in references_in(dump) if not is_there(m, ours, oldest)}
    assert lacks <= set(NEWER)
    for method in code_of(dump):
        for member in references_in(method):
            if str(member) in lacks:
                before = method.partition(f"{member.name}:{member.type}")[0]
                assert "Landroid/os/Build$VERSION;.SDK_INT" in before, str(member)
                level = f"#int {NEWER[str(member)]} "
                assert level in before, f"{member} is of API {NEWER[str(member)]}"


def test_a_mistake_would_be_found(ours: dict[str, JavaClass], newest: Jar, oldest: Jar) -> None:
    activity = "org/minicpmv/app/MainActivity"
    inherited = Member(activity, "startActivity", "(Landroid/content/Intent;)V")
    assert is_there(inherited, ours, newest)
    assert is_there(Member("android/net/Uri", "toString", "()Ljava/lang/String;"), ours, newest)
    for wrong in (
        Member(activity, "startActivity", "(Landroid/content/Intent;)I"),
        Member("android/net/Uri", "fly", "()V"),
        Member("android/app/Acitivity", "<init>", "()V"),
    ):
        assert not is_there(wrong, ours, newest)
    result = "()Landroid/view/WindowInsetsController;"
    insets = Member("android/view/View", "getWindowInsetsController", result)  # since API 30
    assert is_there(insets, ours, newest)
    assert not is_there(insets, ours, oldest)
