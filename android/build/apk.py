"""`minicpmv apk`: builds an installable app from a bundle."""

from __future__ import annotations

import argparse
import getpass
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from android.build.options import (
    abis,
    add_abi,
    add_bundle,
    add_output,
    check_output,
    print_lines,
)
from android.build.tools import ToolError
from convert.support.streams import print_json

if TYPE_CHECKING:
    from android.build.apk_info import ApkInfo
    from android.build.builder import PackagePlan
    from android.build.signing import Key

NAME = "apk"
HELP = "build the Android app of a bundle, without the Android SDK"
EXAMPLES = (
    ("build the app; sideload copies the weights", "minicpmv apk phone -o chat.apk"),
    (
        "build an app that contains its weights, signed with your key",
        "minicpmv apk build/demo --embed --key my.keystore --key-pass env:PASSWORD",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ApkConfig:
    """The parsed command line."""

    bundle: Path
    output: Path
    abi: tuple[str, ...] | None  # None: all that the bundle supports
    embed: bool
    api: bool  # with a server for other apps
    key: Path | None  # None: the debug key
    key_alias: str | None
    key_pass: str | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_bundle(parser)
    output = parser.add_argument_group("output")
    add_output(output, "APK", "chat.apk")
    output.add_argument("--json", action="store_true", help="print JSON")
    content = parser.add_argument_group("content")
    add_abi(content)
    content.add_argument(
        "--embed", action="store_true", help="put the weights into the APK; for small models"
    )
    content.add_argument(
        "--api",
        action="store_true",
        help="let other apps on the phone ask the model; needs the INTERNET permission",
    )
    add = parser.add_argument_group("signature").add_argument
    add("--key", metavar="FILE", type=Path, help="your keystore (default: a debug key)")
    add("--key-alias", metavar="NAME", help="the key to use, if the keystore has several")
    add(
        "--key-pass",
        metavar="SPEC",
        help="where the password is: env:NAME or file:PATH (default: ask)",
    )


def run(args: argparse.Namespace) -> int:
    """Builds the APK and prints a summary."""
    from android.build.apk_info import ApkInfo
    from android.build.builder import build_apk, plan_package
    from convert.bundle.manifest import Bundle
    from convert.support.console import Bars

    config = _parse(args)
    check_output(config.output, "APK", "chat.apk")
    bundle = Bundle.open(config.bundle)
    plan = plan_package(bundle, config.abi, embed=config.embed, api=config.api)
    key = _key(config)
    password = ""
    if key.password == "stdin":
        password = getpass.getpass(f"password of {config.key}: ")
    with Bars() as bars:
        build_apk(plan, key, config.output, bars, password=password)
    info = ApkInfo.read(config.output)
    if config.json:
        print_json({"apk": str(config.output), **asdict(info)}, indent=1)
    else:
        _print(config, plan, info)
    return 0


def _parse(args: argparse.Namespace) -> ApkConfig:
    values = {name: getattr(args, name) for name in ApkConfig.__dataclass_fields__}
    return ApkConfig(**values | {"abi": abis(args.abi)})


def _key(config: ApkConfig) -> Key:
    from android.build.signing import debug_key, own_key

    if config.key is not None:
        key = own_key(config.key, config.key_alias, config.key_pass)
        if key.password == "stdin" and not sys.stdin.isatty():
            raise ToolError(
                "--key needs --key-pass env:NAME or file:PATH if there is no terminal to ask on"
            )
        return key
    if config.key_alias is not None or config.key_pass is not None:
        raise ToolError("--key-alias and --key-pass need your own key; give it with --key")
    return debug_key()


def _print(config: ApkConfig, plan: PackagePlan, info: ApkInfo) -> None:
    from convert.bundle.manifest import WEIGHTS
    from convert.support.console import Size, results

    weights = Size((plan.bundle.path / WEIGHTS).stat().st_size)
    where = "embedded" if plan.embed else "not embedded; `minicpmv sideload` pushes them"
    key = "debug key: installs, but stores reject it" if config.key is None else str(config.key)
    lines = {
        "apk": f"{config.output}, {Size(info.size)}",
        "app": f"{info.package} {info.version_name} ({info.version_code})",
        "abi": ", ".join(info.abis),
        "Android": f"{info.min_sdk} and later, made for {info.target_sdk} (API levels)",
        "permissions": ", ".join(p.rpartition(".")[2] for p in info.permissions),
        "signature": f"{' + '.join(info.schemes)}, {info.certificate_sha256[:16]}…, {key}",
        "weights": f"{weights}, {where}",
    }
    print_lines(lines)
    source = plan.bundle.manifest.source
    if plan.embed and not source.demo:
        results().print(
            f"This APK contains the weights of {source.path}, so their licence applies to it.",
            markup=False,
            soft_wrap=True,
        )
