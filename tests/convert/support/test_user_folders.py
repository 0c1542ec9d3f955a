import pwd
from pathlib import Path

import pytest

from convert.support.cache import CacheError, cache_folder
from convert.support.user_folders import UserFolderError, user_folder

# Where earlier versions kept them, on Linux and on Macs: what is there is still found.
FOLDERS = {"cache": ".cache", "config": ".config", "data": ".local/share"}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"XDG_{kind.upper()}_HOME"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    assert user_folder(kind) == tmp_path / FOLDERS[kind] / "minicpmv"
    monkeypatch.setenv(variable, str(tmp_path / "other"))
    assert user_folder(kind) == tmp_path / "other" / "minicpmv"
    assert list(tmp_path.iterdir()) == []


def test_nobody_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "MINICPMV_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserFolderError, match=r"home directory .*set an absolute HOME or XDG"):
        user_folder("data")
    with pytest.raises(CacheError, match=r"set an absolute HOME .*let MINICPMV_CACHE name"):
        cache_folder()
