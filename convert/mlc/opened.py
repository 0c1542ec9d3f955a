"""An MLC package that is open: everything is checked except the files' hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.bundle.errors import BundleError
from convert.bundle.folder_manifest import ANOTHER_VERSION, check_file, require_folder
from convert.bundle.plan import Plan, Recipe
from convert.checkpoint.config import ModelConfig
from convert.mlc.manifest import KIND, MANIFEST, PackageManifest
from convert.mlc.names import CHAT_CONFIG, TOKENIZER_JSON
from convert.mlc.package import TOKENIZER, make_mlc_plan
from convert.mlc.stored_params import StoredParams, expected_params
from convert.support.strict_json import load_json
from quantize.errors import ToolkitError


@dataclass(frozen=True, kw_only=True)
class MlcPackage:
    """A package for MLC-LLM."""

    path: Path
    manifest: PackageManifest
    config: ModelConfig
    plan: Plan
    params: StoredParams
    chat: dict[str, Any]  # the content of mlc-chat-config.json

    @staticmethod
    def open(path: str | Path) -> MlcPackage:
        """Opens a package; checks the manifest, the files' sizes and every parameter's place.

        Raises:
            BundleError: no package, or one that is truncated, altered or foreign; it names the
                file and what is wrong.
        """
        path = Path(path)
        require_folder(path, KIND)
        manifest = PackageManifest.read(path)
        for name, record in manifest.files.items():
            check_file(path / MANIFEST, name, record.size, KIND.noun)
        if CHAT_CONFIG not in manifest.files:
            raise BundleError(f"{path / MANIFEST}: files lacks {CHAT_CONFIG}")
        chat = _chat_config(path / CHAT_CONFIG)
        try:
            config, recipe = ModelConfig.from_json(manifest.model), Recipe.load(manifest.recipe)
            if recipe.method != manifest.method:
                recipe = recipe.with_method(manifest.method)
            tied = chat["model_config"].get("tie_word_embeddings")
            plan = make_mlc_plan(config, tied is False, recipe, pictures=manifest.pictures)
        except ToolkitError as error:
            raise BundleError(f"{path / MANIFEST}: {error}; {ANOTHER_VERSION}") from error
        params = StoredParams(path, manifest.files, expected_params(plan))
        return MlcPackage(
            path=path, manifest=manifest, config=config, plan=plan, params=params, chat=chat
        )

    @property
    def tokenizer(self) -> Path | None:
        """The SentencePiece model; None if the package has none."""
        return self.path / TOKENIZER if TOKENIZER in self.manifest.files else None

    @property
    def tokenizer_json(self) -> Path | None:
        """The file that MLC-LLM reads in its place; None if the package has none."""
        return self.path / TOKENIZER_JSON if TOKENIZER_JSON in self.manifest.files else None

    @property
    def window(self) -> int:
        """The context window that MLC-LLM gives a conversation, tokens."""
        window = self.chat.get("context_window_size")
        if type(window) is not int or window < 1:
            raise BundleError(
                f"{self.path / CHAT_CONFIG}: context_window_size is {window!r:.40}; expected an "
                "integer of at least 1"
            )
        return window

    def library(self, target: str) -> Path:
        """Returns the library for a target.

        Raises:
            BundleError: there is none.
        """
        record = self.manifest.libraries.get(target)
        if record is None:
            there = ", ".join(self.manifest.libraries) or "none"
            raise BundleError(
                f"{self.path}: holds no library for {target} (libraries: {there}); convert the "
                f"checkpoint again with --target {target} and --mlc-source"
            )
        return self.path / record.file


def _chat_config(path: Path) -> dict[str, Any]:
    try:
        raw = load_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_config"), dict):
        raise BundleError(f"{path}: damaged: not a chat configuration of MLC-LLM")
    return raw
