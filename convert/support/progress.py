"""How work reports how far it has come: one callback for every stage of every command."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callback that receives progress; `convert.support.console.Bars` draws it."""

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Receives the state of a stage.

        Args:
            stage: the stage's name, as the user reads it.
            done: how much is done, in a unit of the stage's own.
            total: how much there is to do; 0: not known.
        """


def silent(stage: str, done: int, total: int, /) -> None:
    """Ignores progress."""
