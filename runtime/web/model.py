"""The page's model: loaded with the settings, and reloaded when they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from convert.bundle.manifest import Bundle
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.loader import Loaded
from runtime.sessions.session import Session

Load = Callable[[int | None], Loaded]  # takes a number of threads; None: the engine chooses


class LoadedModel:
    """One session at a time. All but its properties is called from one thread."""

    def __init__(
        self, load: Load, *, bundle: Bundle | None, source: str, as_original: bool = False
    ) -> None:
        """Loads, but opens no session yet.

        Args:
            load: how.
            bundle: whose engine answers; None: the reference does.
            source: what it was made from, for people.
            as_original: cut long prompts silently, and take turns in any order.

        Raises:
            ToolkitError: it cannot be loaded.
        """
        self._load, self._as_original = load, as_original
        self.bundle, self._source = bundle, source
        self.loaded = load(None)
        self._threads = 0
        self._window = 0
        self._session: Session | None = None
        self.hello: Mapping[str, Any] = {}  # the hello message of the bundle's engine

    @property
    def is_ready(self) -> bool:
        """Whether a session is open."""
        return self._session is not None

    def session(self, settings: Mapping[str, Any], on_load: Callable[[], None]) -> Session:
        """Returns a session with the window and threads that the settings say.

        Args:
            settings: all of them.
            on_load: called before something that takes long.

        Raises:
            ToolkitError: it cannot be opened.
        """
        window = settings["window"]
        threads = 0 if self.bundle is None else settings["threads"]
        if self._session is not None and (window, threads) == (self._window, self._threads):
            return self._session
        on_load()
        self.close()
        if threads != self._threads:
            self.loaded = self._load(threads or None)
            self._threads = threads
        session = self.loaded.open_session(window=window, as_original=self._as_original)
        if isinstance(session, EngineSession):
            self.hello = session.client().hello
        self._session, self._window = session, window
        return session

    def close(self) -> None:
        """Ends the session."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def about(self) -> dict[str, Any]:
        """Returns the model's entry in the page's state, whether or not it is loaded."""
        config, bundle = self.loaded.config, self.bundle
        about: dict[str, Any] = {
            "architecture": config.architecture,
            "source": {"path": self._source},
        }
        if bundle is not None:
            about["quantization"] = {"name": bundle.plan.recipe.scheme.name}
            about["weights_bytes"] = sum(tensor.nbytes for tensor in bundle.plan.tensors)
        return about

    def image_tokens(self) -> int:
        """Returns how many tokens an image takes; 0: the model takes no pictures."""
        resampler = self.loaded.config.resampler
        return 0 if resampler is None else resampler.query_num

    def most_slices(self) -> int:
        """Returns into how many slices the model cuts a picture at most; 0: it cuts none."""
        vision = self.loaded.config.vision
        return 0 if vision is None or vision.slices is None else vision.slices.max_slice_nums
