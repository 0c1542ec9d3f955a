"""MLC-LLM itself compiles the demo; its library answers about pictures as the reference does."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.bundle.errors import BundleError
from convert.mlc.manifest import PackageManifest
from convert.mlc.names import CHAT_CONFIG
from convert.mlc.opened import MlcPackage
from convert.mlc.product import PHONE_ROOM
from convert.support.strict_json import load_json
from runtime.mlc.engine import MlcEngine, find_library
from runtime.verify.verify import verify
from tests.support.compare import Record
from tests.support.elf import Elf

LEAST_DB = 40.0  # int8 vision in float16: 47.3 were measured
ARM64 = "aarch64"


def test_what_is_in_the_package(package: Path, tmp_path: Path) -> None:
    manifest = PackageManifest.read(package)
    assert manifest.pictures is True
    assert {name: record.abi for name, record in manifest.libraries.items()} == {
        "mlc-android": "0.27", "mlc-host": "0.27"
    }  # fmt: skip
    for library in manifest.libraries.values():
        assert library.temporary_bytes is not None, "MLC-LLM says it in other words"
        assert 0 < library.temporary_bytes < PHONE_ROOM
    config = load_json(package / CHAT_CONFIG)
    vision = config["model_config"]["vision_config"]
    assert config["model_type"] == "minicpm_v"
    assert (vision["image_size"] // vision["patch_size"]) ** 2 == vision["num_queries"] == 64
    with tarfile.open(package / manifest.libraries["mlc-android"].file) as archive:
        archive.extractall(tmp_path, filter="data")
    objects = list(tmp_path.iterdir())
    assert objects and {Elf.read(path).machine for path in objects} == {ARM64}


def test_verify(package: Path, record_property: Record) -> None:
    """Image tokens, logits and answers of the compiled library, against the reference."""
    report = verify(package, engine="mlc")
    assert report.passed, report.causes
    found = {(check.name, check.metric): check.value for check in report.checks}
    for name, metric in (("image tokens", "SQNR"), ("logits", "SQNR, same weights")):
        record_property(f"{name}, {metric}", found[name, metric])
    assert found["image tokens", "SQNR"] > LEAST_DB
    assert all(answer.same for answer in report.answers) and len(report.answers) == 12


def test_ids_of_more_than_a_chunk(package: Path) -> None:
    opened = MlcPackage.open(package)
    engine, ids = MlcEngine(find_library(opened), opened.params), list(range(3, 303))
    parts = [engine.embed(ids[:100]), engine.embed(ids[100:200]), engine.embed(ids[200:])]
    assert engine.embed(ids).equal(torch.cat(parts))


def test_a_package_of_another_model(package: Path) -> None:
    opened = MlcPackage.open(package)
    library, params = find_library(opened), dict(opened.params)
    wide = np.zeros((2, *params["model.norm.weight"].shape), np.float16)
    with pytest.raises(BundleError, match=r"it takes model\.norm\.weight as float16"):
        MlcEngine(library, params | {"model.norm.weight": wide})
    with pytest.raises(BundleError, match=r"takes no parameter zzz, which the package has"):
        MlcEngine(library, params | {"zzz": wide})
    del params["model.norm.weight"]
    with pytest.raises(BundleError, match=r"takes a parameter model\.norm\.weight, which the"):
        MlcEngine(library, params)
