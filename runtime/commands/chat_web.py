"""`minicpmv chat --web`: passes the command line to the server of the page."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from typing import Any

from convert.bundle.manifest import Bundle
from convert.support.console import results
from runtime.commands.chat_options import SETTINGS, ChatConfig, load_model
from runtime.engine_client.options import REFERENCE
from runtime.inputs.slices import limit_slices
from runtime.sessions.conversation import say
from runtime.sessions.loader import is_bundle
from runtime.web.files import data_folder
from runtime.web.model import LoadedModel
from runtime.web.serve import serve

# Settings that both the command line and the page have.
_SHARED = ("temperature", "top_p", "top_k", "max_new_tokens", "window", "max_slices")


def chat_on_page(config: ChatConfig) -> int:
    """Serves the page until Ctrl-C."""
    bundle = None
    if config.engine.engine != REFERENCE and config.source is not None and is_bundle(config.source):
        bundle = Bundle.open(config.source)
    model = LoadedModel(
        lambda threads: load_model(
            config, replace(config.engine, threads=threads or config.engine.threads)
        ),
        bundle=bundle,
        source=config.source or "demo",
        as_original=config.as_original,
    )
    limit_slices(model.loaded.config.vision, config.max_slices)
    defaults = model.loaded.defaults
    limit = defaults.named(SETTINGS).max_new_tokens
    folder = data_folder()

    def begin(address: str) -> None:
        say(f"{model.loaded.description}; chats are kept in {folder}; Ctrl-C ends")
        results().print(address, markup=False, soft_wrap=True)
        if not config.no_open:
            webbrowser.open(address)

    serve(
        model,
        folder,
        port=config.port or 0,
        window=defaults.window_for(None, as_original=config.as_original, max_new_tokens=limit),
        choices=_choices(config),
        seed=config.seed,
        picture=config.image,
        on_start=begin,
    )
    return 0


def _choices(config: ChatConfig) -> dict[str, Any]:
    """Returns the settings that the user gave."""
    named = {name: getattr(config, name) for name in _SHARED}
    choices = {name: value for name, value in named.items() if value is not None}
    if config.greedy:
        choices["do_sample"] = False
    elif any(name in choices for name in ("temperature", "top_p", "top_k")):
        choices["do_sample"] = True
    return choices
