"""Which tests prove what the app, and the page on a PC, do with bad input: the table `PROOFS`.

Each row is an accident that is bound to happen; a row's tests show that it is told of in words,
loses nothing, and leaves a way on.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
_JAVA = "android/java/org/minicpmv/core"
_APP, _STORAGE, _PICTURE, _IMPORT, _LENT = (
    f"{_JAVA}/{name}Test.java" for name in ("Assistant", "Storage", "Picture", "Import", "Lent")
)
_LIFE = "android/java/org/minicpmv/app/LifeTest.java"
_LENT_FILE = "android/java/org/minicpmv/app/LentFileTest.java"
_PAGE, _WEB_PAGE = "android/test_page.py", "android/test_page_http.py"
_PAGE_SLICES, _CONTRACT = "android/test_page_slices.py", "android/test_contract.py"
_STORE, _SIDELOAD = "runtime/web/test_web_store.py", "android/device/test_sideload.py"

PROOFS: dict[str, tuple[tuple[str, str], ...]] = {
    "no weights": (
        (_APP, "withoutWeightsTheUserIsAsked"),
        (_PAGE, "test_the_first_start"),
    ),
    "wrong weights": (
        (_APP, "truncatedAndForeignWeightsAreRefused"),
        (_APP, "damagedWeightsAreDetectedInTheBackground"),
        (_PAGE, "test_the_first_start"),
    ),
    "half-copied weights": (
        (_APP, "truncatedAndForeignWeightsAreRefused"),
        (_APP, "anImportCanBeStopped"),
        (_IMPORT, "theUserIsToldAndContinues"),
        (_IMPORT, "aKilledAppContinuesFromTheLatestRecord"),
        (_SIDELOAD, "test_the_command_goes_on_with_half_copied_weights"),
    ),
    "a HEIC or GIF": (
        (_PICTURE, "unsupportedFormatsAreNamed"),
        (_PICTURE, "heicIsTurnedExactlyOnce"),
        ("android/test_pictures.py", "test_boxes_of_heif"),
        (_STORE, "test_pictures_that_are_refused"),
        (_PAGE, "test_pictures_upright_and_refused"),
        (_WEB_PAGE, "test_pictures_upright_and_refused"),
    ),
    "weights of another app that moved, changed or are locked": (
        (_LENT, "aFileThatIsGoneComesBack"),
        (_LENT, "aFileThatChangedIsHashedBeforeItIsUsed"),
        (_LENT, "aFileThatWasCutOffIsNamed"),
        (_LENT, "aRevokedPermissionIsNamed"),
        (_LENT, "aWrongFileLeavesTheModelInUse"),
        (_LENT_FILE, "aRevokedPermissionAndADeletedFileAreTwoProblems"),
        (_LENT_FILE, "aFileThatIsCutOffInUseEndsTheEngineNotTheApp"),
        (_LENT_FILE, "aPartOfAFileIsCopied"),
        (_LENT, "aStreamIsCopied"),
        ("engine/test_handover.py", "test_what_is_no_such_file"),
    ),
    "an app update with an older bundle": (
        (_APP, "anAppUpdateNeedsItsOwnWeights"),
        (_STORAGE, "weightsOfAnotherBundleAreDeletedForSpaceAndUsableOnesStay"),
        (_SIDELOAD, "test_an_app_takes_the_weights_of_its_own_bundle"),
        ("convert/bundle/test_bundle.py", "test_bundles_of_other_versions_say_what_to_do"),
    ),
    "storage full": (
        (_STORAGE, "anImportThatDoesNotFitIsNotStarted"),
        (_STORAGE, "anImportThatFillsStorageLeavesTheOldModel"),
        (_STORAGE, "withoutAModelTheStartScreenReportsFullStorage"),
        (_STORAGE, "aPictureThatFillsStorageLeavesNothing"),
        (_STORAGE, "pixelsThatFillStorageLeaveThePictureUsable"),
        (_STORAGE, "aChatThatCannotBeSavedIsStillAnswered"),
        (_LIFE, "fullStorageIsExplainedAndTheAnswerComes"),
        (_STORE, "test_a_full_disk_leaves_nothing_by_half"),
        (_SIDELOAD, "test_the_command_with_a_full_phone"),
        (_SIDELOAD, "test_the_command_is_told_that_the_phone_is_full_on_the_way"),
    ),
    "engine killed while generating": (
        (_APP, "aPictureIsEncodedOnceAndSurvivesTheEngine"),
        (_APP, "aDeadEngineIsRestartedAndTheChatIsKept"),
        (_APP, "theCauseOfDeathIsReported"),
        (_LIFE, "anEngineThatTheSystemKillsIsStartedAgain"),
        (_PAGE, "test_an_engine_that_dies_is_told_of"),
        (_WEB_PAGE, "test_a_dead_engine_and_a_dead_server_are_told_of"),
    ),
    "rotation of the screen while generating": (
        ("android/build/test_apk.py", "test_what_android_reads"),
        (_LIFE, "anAnswerGoesOnWhileTheScreenIsRecreated"),
        (_PAGE, "test_the_screen_is_turned_while_it_answers"),
        (_WEB_PAGE, "test_the_screen_is_turned_while_it_answers"),
    ),
    "the system ends the app's process": (
        (_LIFE, "chatDraftAndPictureSurviveTheProcess"),
        ("android/java/org/minicpmv/app/PageTest.java", "aPageThatDiesIsOpenedAgain"),
    ),
    "a picture whose slices do not fit the window": (
        (_PAGE_SLICES, "test_a_picture_that_does_not_fit_asks_for_less_detail"),
        (_CONTRACT, "test_both_hosts_keep_to_it_with_slices"),  # slices/errors.json
    ),
    "a detail that the model cannot have": (
        (_APP, "aPictureIsCutAsTheSettingsSayNow"),
        (_CONTRACT, "test_both_hosts_keep_to_it_with_slices"),  # slices/detail.json
        (_LIFE, "theDetailSurvivesTheProcessAndAModelWithoutSlicesIsNotAskedForIt"),
    ),
    "double taps": (
        (_CONTRACT, "test_both_hosts_keep_to_it"),  # stop.json
        (_WEB_PAGE, "test_double_taps_ask_once"),
    ),
}


@pytest.mark.parametrize("accident", PROOFS)
def test_every_listed_test_exists(accident: str) -> None:
    for name, test in PROOFS[accident]:
        source = (TESTS / name).read_text("utf-8")
        begin = r"@Test\s+public void" if name.endswith(".java") else r"^def"
        assert re.search(rf"{begin} {test}\(", source, re.MULTILINE), f"{name}: {test}"
    assert PROOFS[accident]


def test_every_junit_class_is_run() -> None:
    for folder, runner in (("core", "test_java.py"), ("app", "test_app.py")):
        listed = (TESTS / "android" / runner).read_text("utf-8")
        paths = list((TESTS / _JAVA).parent.glob(f"{folder}/*Test.java"))
        assert paths
        for path in paths:
            assert f'"{path.stem}"' in listed, path
