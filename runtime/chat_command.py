"""`minicpmv chat`: one answer, or a conversation in the terminal."""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from convert.console import Size, messages, results
from quantize.errors import ConfigError, PromptError, ToolkitError
from runtime.engine_options import EngineOptions, add_engine_arguments, engine_options
from runtime.protocol import Stage, Stop

if TYPE_CHECKING:
    from PIL import Image

    from runtime.prompt import Message
    from runtime.sampling import GenerationOptions
    from runtime.session import Cancelled, Reply, Session, Statistics

NAME = "chat"
HELP = "ask about a picture, once or in a conversation"
SETTINGS = "OmniLMMChat"  # whose sampling it uses; beam search, the other original's, cannot stream
COMMANDS = "/image FILE shows a picture, /reset starts anew, /quit ends; Ctrl-C stops an answer"
_FAILED = 2
_THINKING = "thinking"
_STAGES = {Stage.ENCODE: "encoding the picture", Stage.PREFILL: "reading the prompt"}
# What a terminal would obey rather than show.
_CONTROL = {i: None for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What the command line says."""

    source: str | None  # None: the demo checkpoint
    image: Path | None
    prompt: str | None  # None: a conversation
    greedy: bool
    engine: EngineOptions
    device: str | None
    dtype: str | None
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    window: int | None
    as_original: bool
    json: bool

    def __post_init__(self) -> None:
        """Refuses settings of sampling beside `--greedy`."""
        names = ("temperature", "top_p", "top_k", "seed")
        given = [f"--{n.replace('_', '-')}" for n in names if getattr(self, n) is not None]
        if self.greedy and given:
            raise ConfigError(f"--greedy does not sample, so {', '.join(given)} mean nothing")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add(
        "source",
        metavar="DIR",
        nargs="?",
        help="a bundle, a checkpoint's folder, or a Hugging Face id (default: the demo checkpoint)",
    )
    add("--image", metavar="FILE", type=Path, help="the picture")
    add("--prompt", metavar="TEXT", help="ask this and end; without it, a conversation")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add_engine_arguments(parser)
    add("--device", help="cpu, mps or cuda, for the reference (default: the fastest there is)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="for the reference (default: float32 on a CPU, half precision elsewhere)",
    )
    add("--max-new-tokens", metavar="N", type=int, help="longest answer (default: 2048)")
    add("--temperature", metavar="T", type=float, help="above 1 wilder, below 1 tamer")
    add("--top-p", metavar="P", type=float, help="sample from the likeliest that sum to P")
    add("--top-k", metavar="K", type=int, help="sample from the K likeliest; 0: from all")
    add("--seed", metavar="N", type=int, help="makes sampling repeatable")
    add("--window", metavar="N", type=int, help="context window in tokens (default: 1024)")
    add(
        "--as-original",
        action="store_true",
        help="cut long prompts to 2048 tokens and let nothing slide out of the window",
    )
    add("--json", action="store_true", help="print every answer as one line of JSON")


def run(args: argparse.Namespace) -> int:
    """Chats; returns 0, or 2 if a piped question could not be answered."""
    names = ChatConfig.__dataclass_fields__.keys() - {"engine"}
    config = ChatConfig(
        engine=engine_options(args), **{name: getattr(args, name) for name in names}
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may not fit the terminal's encoding
    if config.prompt is not None and not config.prompt.strip():
        raise PromptError("--prompt is empty; expected a question")
    with closing(_open(config)) as chat:
        if config.prompt is not None:
            chat.ask(config.prompt)
            return 0
        return _converse(chat)


class _Chat:
    """A conversation and the screen."""

    def __init__(
        self,
        session: Session,
        options: GenerationOptions,
        picture: Image.Image | None,
        *,
        as_json: bool,
    ) -> None:
        self._session, self._options = session, options
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
        with _Waiting() as waiting:

            def show(piece: str) -> None:
                waiting.stop()
                results().out(piece.translate(_CONTROL), end="", highlight=False)

            reply = self._session.reply(
                turns,
                self._picture,
                self._options,
                on_text=(lambda piece: None) if self._as_json else show,
                on_progress=waiting.update,
                cancelled=cancelled,
            )
        if self._as_json:
            results().out(_json_line(reply), highlight=False)
        else:
            results().out("", highlight=False)
        if reply.text:  # an answer that was cancelled before its first word leaves no trace
            self._turns = [*turns, {"role": "assistant", "content": reply.text}]
        _say(_statistics_line(reply.statistics))

    def show_picture(self, path: Path) -> None:
        """Takes another picture; the first turn carries it, so the conversation starts anew."""
        from runtime.picture import open_picture
        from runtime.session import require_vision

        picture = open_picture(path)
        require_vision(self._session.config)
        self._picture = picture
        _say(f"{path}: {picture.width} x {picture.height} pixels" + self.reset())

    def reset(self) -> str:
        """Forgets the conversation but not the picture; says so if there was one."""
        had, self._turns = bool(self._turns), []
        return "; the conversation starts anew" if had else ""


class _Waiting:
    """A sign of life until the answer's first word."""

    def __init__(self) -> None:
        self._status = messages().status(_THINKING) if messages().is_terminal else None

    def __enter__(self) -> _Waiting:
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


def _open(config: ChatConfig) -> _Chat:
    """Loads picture and model, and says what runs how."""
    from runtime.loader import load
    from runtime.picture import open_picture
    from runtime.sampling import GenerationOptions
    from runtime.session import require_vision

    picture = None if config.image is None else open_picture(config.image)
    with messages().status("loading the model") as status:

        def progress(stage: str, done: int, total: int) -> None:
            status.update(f"{stage}: {Size(done)} of {Size(total)}")

        loaded = load(
            config.source,
            config.engine,
            device=config.device,
            dtype=config.dtype,
            progress=progress,
        )
    if picture is not None:
        require_vision(loaded.config)
    settings = loaded.defaults.named(SETTINGS)
    limit = settings.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens
    if config.greedy:
        options = GenerationOptions(max_new_tokens=limit)
    else:
        asked = {k: getattr(config, k) for k in ("temperature", "top_p", "top_k")}
        chosen = settings.choose(True, {k: v for k, v in asked.items() if v is not None})
        if config.top_k == 0:
            chosen["top_k"] = None
        options = GenerationOptions(max_new_tokens=limit, seed=config.seed, **chosen)
    window = loaded.defaults.window_for(
        config.window, as_original=config.as_original, max_new_tokens=limit
    )
    with messages().status("starting the engine"):
        session = loaded.open_session(window=window, as_original=config.as_original)
    note = "" if config.source is not None else "demo checkpoint: "
    _say(f"{note}{loaded.description}; window {window}; {_how(options)}")
    return _Chat(session, options, picture, as_json=config.json)


def _converse(chat: _Chat) -> int:
    """Answers line by line until /quit or the end of the input."""
    from runtime.engine_process import EngineDiedError

    is_terminal = sys.stdin.isatty()
    failed = False
    if is_terminal:
        _enable_line_editing()
        _say(COMMANDS)
        if chat.lacks_picture:
            _say("no picture yet")
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
            if line == "/quit":
                break
            if line:
                _handle(chat, line)
        except EOFError:
            if is_terminal:
                results().out("")
            break
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            results().out("")  # as in a shell, Ctrl-C leaves the line
        except (ToolkitError, UnicodeDecodeError) as error:
            failed = True
            messages().print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
            if isinstance(error, EngineDiedError):
                _say("the next question starts the engine again")
    return _FAILED if failed and not is_terminal else 0


def _handle(chat: _Chat, line: str) -> None:
    command, _, argument = line.partition(" ")
    argument = argument.strip().strip("'\"")
    if command == "/reset":
        _say(chat.reset().removeprefix("; ") or "nothing to forget")
    elif command == "/image" and argument:
        chat.show_picture(Path(argument).expanduser())
    elif command.startswith("/"):
        raise PromptError(f"{command!r} is no command with what it needs: {COMMANDS}")
    else:
        with _interruptible() as cancelled:
            chat.ask(line, cancelled)


@contextmanager
def _interruptible() -> Iterator[Cancelled]:
    """Makes Ctrl-C end the answer after its current token; a second one ends it at once."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  # `input` uses it from now on
    except ImportError:  # some builds of Python lack it
        return


def _how(options: GenerationOptions) -> str:
    """Describes the way of generating."""
    if not options.do_sample:
        return "greedy"
    seed = "" if options.seed is None else f", seed {options.seed}"
    return (
        f"temperature {options.temperature:g}, top-k {options.top_k or 'all'}, "
        f"top-p {options.top_p:g}{seed}"
    )


def _statistics_line(s: Statistics) -> str:
    picture = f"picture {s.encode_ms:,.0f} ms, " if s.encode_ms else ""
    reused = f" ({s.reused_tokens} remembered)" if s.reused_tokens else ""
    end = {Stop.LENGTH: ", cut at --max-new-tokens", Stop.CANCELLED: ", cancelled"}.get(s.stop, "")
    return (
        f"{picture}prompt {s.prompt_tokens} tokens{reused} {s.prefill_tok_s:,.0f} tok/s, "
        f"answer {s.generated_tokens} tokens {s.decode_tok_s:,.1f} tok/s{end}"
    )


def _json_line(reply: Reply) -> str:
    statistics = asdict(reply.statistics)
    for name in ("prefill_tok_s", "decode_tok_s"):
        statistics[name] = getattr(reply.statistics, name)
    return json.dumps({"answer": reply.text, "statistics": statistics}, ensure_ascii=False)


def _say(text: str) -> None:
    messages().print(text, style="dim", markup=False, soft_wrap=True)
