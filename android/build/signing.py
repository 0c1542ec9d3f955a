"""Signing keys: the user's own, or a debug key generated once and kept in the user's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from android.build.phones import MIN_SDK
from android.build.tools import ToolError, program, run
from convert.support.scratch import scratch_folder
from convert.support.user_folders import user_folder
from convert.support.whole_file import whole_file

DEBUG_ALIAS, DEBUG_PASSWORD = "debug", "android"  # the usual ones; a debug key needs no secrecy
_DEBUG_DAYS = 10000


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key in a keystore."""

    keystore: Path
    alias: str | None  # None: the keystore's only key
    password: str  # in apksigner's syntax: pass:TEXT, env:NAME, file:PATH or stdin


def debug_key(folder: Path | None = None) -> Key:
    """Returns the debug key; generates it on first use.

    Raises:
        ToolError: keytool is missing or fails.
    """
    folder = folder or user_folder("config")
    keystore = folder / "debug.p12"
    if not keystore.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(".key-", folder) as scratch:
            made = scratch / keystore.name
            run(
                [
                    *(program("keytool"), "-genkeypair", "-keystore", str(made)),
                    *("-storetype", "PKCS12", "-storepass", DEBUG_PASSWORD),
                    *("-alias", DEBUG_ALIAS, "-keyalg", "RSA", "-keysize", "2048"),
                    *("-validity", str(_DEBUG_DAYS), "-dname", "CN=minicpmv debug"),
                ],
                f"{keystore}: cannot be created",
            )
            made.chmod(0o600)
            with whole_file(keystore) as file:
                made.rename(file)
    return Key(keystore=keystore, alias=DEBUG_ALIAS, password=f"pass:{DEBUG_PASSWORD}")


def own_key(keystore: Path, alias: str | None, password: str | None) -> Key:
    """Returns the user's own key.

    Args:
        keystore: a file created by keytool.
        alias: a key in it; None: the only one.
        password: env:NAME or file:PATH; None: read from stdin.

    Raises:
        ToolError: no such file or variable, or a password in plain text.
    """
    if not keystore.is_file():
        raise ToolError(f"{keystore}: no such keystore; expected a file created by keytool")
    if password is not None:
        kind, _, where = password.partition(":")
        if kind not in ("env", "file") or not where:
            # Do not print the value: it may be the password itself.
            raise ToolError(
                "--key-pass: expected env:NAME for an environment variable, or file:PATH for the "
                "first line of a file"
            )
        if kind == "env" and where not in os.environ:
            raise ToolError(f"--key-pass {password}: there is no variable {where}")
        if kind == "file" and not Path(where).is_file():
            raise ToolError(f"--key-pass {password}: there is no such file")
    return Key(keystore=keystore, alias=alias, password=password or "stdin")


def sign(apk: Path, key: Key, output: Path, *, password: str | None = None) -> None:
    """Signs an aligned APK with schemes v2 and v3.

    Args:
        apk: the unsigned APK.
        key: the signing key.
        output: the signed APK.
        password: of the keystore, if `key` reads it from stdin.

    Raises:
        ToolError: wrong password, no such key, damaged keystore.
    """
    command = [program("apksigner"), "sign", "--ks", str(key.keystore), "--ks-pass", key.password]
    if key.alias is not None:
        command += ["--ks-key-alias", key.alias]
    command += ["--min-sdk-version", str(MIN_SDK), "--v1-signing-enabled", "false"]
    command += ["--v2-signing-enabled", "true", "--v3-signing-enabled", "true"]
    command += ["--v4-signing-enabled", "false", "--in", str(apk), "--out", str(output)]
    stdin = None if password is None else password + "\n"
    run(command, f"{output.name}: cannot be signed with {key.keystore}", stdin=stdin)
