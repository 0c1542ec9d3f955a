"""A conversation on the screen: what is asked, what is shown of the answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.support.console import messages, results
from convert.support.streams import print_json
from runtime.engine_client.protocol import Stage, Stop

if TYPE_CHECKING:
    from PIL import Image

    from runtime.inputs.callbacks import Cancelled
    from runtime.inputs.generation_options import GenerationOptions
    from runtime.inputs.prompt import Message
    from runtime.sessions.session import Reply, Session, Statistics

_THINKING = "thinking"
_STAGES = {Stage.ENCODE: "encoding the picture", Stage.PREFILL: "reading the prompt"}
# What a terminal would obey rather than show.
CONTROL = {i: None for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


class Conversation:
    """A conversation and the screen."""

    def __init__(
        self,
        session: Session,
        options: GenerationOptions,
        picture: Image.Image | None,
        *,
        max_slices: int | None,
        as_json: bool,
    ) -> None:
        self._session, self._options, self._max_slices = session, options, max_slices
        self._picture, self._as_json = picture, as_json
        self._turns: list[Message] = []

    def close(self) -> None:
        """Ends what runs the model."""
        self._session.close()

    @property
    def lacks_picture(self) -> bool:
        """Whether the model takes pictures and has none yet."""
        return self._picture is None and self._session.config.vision is not None

    def ask(self, text: str, cancelled: Cancelled = lambda: False) -> None:
        """Prints the answer as it comes, and what it took; an answer joins the conversation."""
        turns: list[Message] = [*self._turns, {"role": "user", "content": text}]
        with Waiting() as waiting:

            def show(piece: str) -> None:
                waiting.stop()
                results().out(piece.translate(CONTROL), end="", highlight=False)

            reply = self._session.reply(
                turns,
                self._picture,
                self._options,
                max_slices=self._max_slices,
                on_text=(lambda piece: None) if self._as_json else show,
                on_progress=waiting.update,
                cancelled=cancelled,
            )
        if self._as_json:
            print_json(_described(reply))
        else:
            results().out("", highlight=False)
        # An answer that was cancelled before its first word leaves no trace.
        if reply.text or reply.statistics.stop != Stop.CANCELLED:
            self._turns = [*turns, {"role": "assistant", "content": reply.text}]
        say(_statistics_line(reply.statistics))

    def show_picture(self, path: Path) -> None:
        """Takes another picture; the first turn carries it, so the conversation starts anew."""
        from runtime.inputs.picture import open_picture
        from runtime.sessions.session import require_vision

        picture = open_picture(path)
        require_vision(self._session.config)
        self._picture = picture
        say(f"{path}: {picture.width} x {picture.height} pixels" + self.reset())

    def reset(self) -> str:
        """Forgets the conversation but not the picture; says so if there was one."""
        had, self._turns = bool(self._turns), []
        return "; the conversation starts anew" if had else ""


class Waiting:
    """A sign of life until the answer's first word."""

    def __init__(self) -> None:
        self._status = messages().status(_THINKING) if messages().is_terminal else None

    def __enter__(self) -> Waiting:
        if self._status is not None:
            self._status.start()
        return self

    def update(self, stage: str, done: int, total: int) -> None:
        """Says how far a picture or a prompt is."""
        if self._status is not None:
            self._status.update(f"{_STAGES[stage]} {done}/{total}" if done < total else _THINKING)

    def stop(self) -> None:
        """Wipes the sign away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __exit__(self, *error: object) -> None:
        self.stop()


def _statistics_line(s: Statistics) -> str:
    if not s.prompt_tokens:  # it never came to a prompt
        return "cancelled while encoding the picture"
    picture = f"picture {s.encode_ms:,.0f} ms, " if s.encode_ms else ""
    reused = f" ({s.reused_tokens} remembered)" if s.reused_tokens else ""
    end = {Stop.LENGTH: ", cut at --max-new-tokens", Stop.CANCELLED: ", cancelled"}.get(s.stop, "")
    return (
        f"{picture}prompt {s.prompt_tokens} tokens{reused} {s.prefill_tok_s:,.0f} tok/s, "
        f"answer {s.generated_tokens} tokens {s.decode_tok_s:,.1f} tok/s{end}"
    )


def _described(reply: Reply) -> dict[str, Any]:
    statistics = asdict(reply.statistics)
    for name in ("prefill_tok_s", "decode_tok_s"):
        statistics[name] = getattr(reply.statistics, name)
    return {"answer": reply.text, "statistics": statistics}


def say(text: str) -> None:
    """Tells people something, beside the answers."""
    messages().print(text, style="dim", markup=False, soft_wrap=True)
