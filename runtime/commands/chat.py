"""`minicpmv chat`: answers one question, or chats in the terminal or in the browser."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from convert.support.console import messages, results
from quantize.errors import ToolkitError
from runtime.commands.chat_options import SETTINGS, ChatConfig, add_max_slices, load_model
from runtime.engine_client.options import add_engine_arguments, engine_options
from runtime.sessions.conversation import Conversation, say

if TYPE_CHECKING:
    from runtime.inputs.callbacks import Cancelled
    from runtime.inputs.generation_options import GenerationOptions

NAME = "chat"
HELP = "ask about pictures, in the terminal or in the browser"
EXAMPLES = (
    (
        "ask one question about a picture",
        "minicpmv chat build/demo --image configs/demo/sample.png --prompt 'Which shape?'",
    ),
    ("chat in the browser", "minicpmv chat build/demo --web"),
)
COMMANDS = "/image FILE shows a picture, /reset starts again, /quit ends; Ctrl-C stops an answer"
_FAILED = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "source",
        metavar="DIR",
        nargs="?",
        help="a bundle, a checkpoint's folder, a Hugging Face id, or demo-2.0 (default: the demo "
        "checkpoint)",
    )
    add = parser.add_argument_group("question").add_argument
    add("--image", metavar="FILE", type=Path, help="the picture")
    add_max_slices(add)
    add("--prompt", metavar="TEXT", help="ask one question and exit (default: a conversation)")
    add("--json", action="store_true", help="print each answer as one line of JSON")
    _add_generation(parser)
    add_engine_arguments(parser)
    add = parser.add_argument_group("full-precision model").add_argument
    add("--device", metavar="NAME", help="cpu, mps or cuda (default: the fastest available)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="type of weights and activations (default: float32 on a CPU, else half precision)",
    )
    add = parser.add_argument_group("browser").add_argument
    add("--web", action="store_true", help="chat in the browser, with the app's page")
    add("--port", metavar="N", type=int, help="port of the page (default: any free port)")
    add("--no-open", action="store_true", help="print the address without opening the browser")


def _add_generation(parser: argparse.ArgumentParser) -> None:
    """Declares how answers are generated."""
    add = parser.add_argument_group(
        "generation", "Defaults are the settings of the original code."
    ).add_argument
    add("--greedy", action="store_true", help="always choose the most likely token")
    add(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help="longest answer (default: 2048; 1024 with slices)",
    )
    add(
        "--temperature",
        metavar="T",
        type=float,
        help="divide logits by T: above 1 answers vary more, below 1 less",
    )
    add(
        "--top-p",
        metavar="P",
        type=float,
        help="sample from the most likely tokens whose probabilities sum to P",
    )
    add("--top-k", metavar="K", type=int, help="sample from the K most likely tokens; 0: from all")
    add("--seed", metavar="N", type=int, help="seed; equal seeds give equal answers")
    add(
        "--window",
        metavar="N",
        type=int,
        help="context window in tokens (default: 1024; 2048 with slices)",
    )
    add(
        "--as-original",
        action="store_true",
        help="treat prompts as the original code does: cut long ones to 2048 tokens, keep the "
        "window from sliding, and answer an empty --prompt",
    )


def run(args: argparse.Namespace) -> int:
    """Chats; returns 0, or 2 if a piped question could not be answered."""
    names = ChatConfig.__dataclass_fields__.keys() - {"engine"}
    config = ChatConfig(
        engine=engine_options(args), **{name: getattr(args, name) for name in names}
    )
    is_empty = config.prompt is not None and not config.prompt.strip()
    if is_empty and not config.as_original:
        from runtime.inputs.prompt import PromptError

        raise PromptError("--prompt is empty; expected a question")
    if config.web:
        from runtime.commands.chat_web import chat_on_page

        return chat_on_page(config)
    with closing(_open(config)) as chat:
        if config.prompt is not None:
            chat.ask(config.prompt)
            return 0
        return _converse(chat)


def _open(config: ChatConfig) -> Conversation:
    """Loads the picture and the model, and prints which model runs with which settings."""
    from runtime.inputs.generation_options import GenerationOptions
    from runtime.inputs.picture import open_picture
    from runtime.inputs.slices import limit_slices
    from runtime.sessions.session import require_vision

    picture = None if config.image is None else open_picture(config.image)
    loaded = load_model(config, config.engine)
    if picture is not None:
        require_vision(loaded.config)
    limit_slices(loaded.config.vision, config.max_slices)
    settings = loaded.defaults.named(SETTINGS)
    limit = settings.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens
    if config.greedy:
        options = GenerationOptions(max_new_tokens=limit)
    else:
        asked = {k: getattr(config, k) for k in ("temperature", "top_p", "top_k")}
        chosen = settings.choose(True, {k: v for k, v in asked.items() if v is not None})
        options = GenerationOptions(max_new_tokens=limit, seed=config.seed, **chosen)
    window = loaded.defaults.window_for(
        config.window, as_original=config.as_original, max_new_tokens=limit
    )
    with messages().status("starting the engine"):
        session = loaded.open_session(window=window, as_original=config.as_original)
    note = "" if config.source is not None else "demo checkpoint: "
    say(f"{note}{loaded.description}; window {window}; {_how(options)}")
    return Conversation(
        session, options, picture, max_slices=config.max_slices, as_json=config.json
    )


def _converse(chat: Conversation) -> int:
    """Answers line by line until /quit or the end of the input."""
    from runtime.engine_client.process import EngineDiedError

    is_terminal = sys.stdin.isatty()
    failed = False
    if is_terminal:
        _enable_line_editing()
        say(COMMANDS)
        if chat.lacks_picture:
            say("no picture yet")
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
                say("the next question starts the engine again")
    return _FAILED if failed and not is_terminal else 0


def _handle(chat: Conversation, line: str) -> None:
    command, _, argument = line.partition(" ")
    argument = argument.strip().strip("'\"")
    if command == "/reset":
        say(chat.reset().removeprefix("; ") or "nothing to forget")
    elif command == "/image" and argument:
        chat.show_picture(Path(argument).expanduser())
    elif command.startswith("/"):
        from runtime.inputs.prompt import PromptError

        raise PromptError(f"{command!r} is not a command, or lacks its argument: {COMMANDS}")
    else:
        with _interruptible() as cancelled:
            chat.ask(line, cancelled)


@contextmanager
def _interruptible() -> Iterator[Cancelled]:
    """Makes Ctrl-C stop the answer after its current token; a second one stops at once."""
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
    """Describes how tokens are chosen."""
    if not options.do_sample:
        return "greedy"
    seed = "" if options.seed is None else f", seed {options.seed}"
    return (
        f"temperature {options.temperature:g}, top-k {options.top_k or 'all'}, "
        f"top-p {options.top_p:g}{seed}"
    )
