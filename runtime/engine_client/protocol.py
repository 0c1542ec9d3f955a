"""Every name of the engine's protocol, as `runtime/engine/protocol.h` and `error.h` have them.

`runtime/engine/PROTOCOL.md` says what they mean.
"""

from __future__ import annotations

VERSION = 1
LINE_LIMIT = 16 << 20  # bytes of a request, without its newline


class Op:
    """What a request asks for."""

    LOAD = "load"
    IMAGE = "image"
    CHAT = "chat"
    CANCEL = "cancel"
    RESET = "reset"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    TAP = "tap"
    SAVE_IMAGE = "save_image"
    RESTORE_IMAGE = "restore_image"
    SELF_CHECK = "selfcheck"
    BANDWIDTH = "bandwidth"
    PROFILE = "profile"
    THREADS = "threads"


class Event:
    """What a line of the engine is."""

    HELLO = "hello"
    PROGRESS = "progress"
    TEXT = "text"
    TOKEN = "token"
    DONE = "done"
    ERROR = "error"


class Stage:
    """What a progress event counts."""

    ENCODE = "encode"
    PREFILL = "prefill"
    SELF_CHECK = "selfcheck"


class Stop:
    """Why an answer ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP_STRING = "stop_string"
    CANCELLED = "cancelled"


class Tap:
    """What a tap runs."""

    CUT = "cut"
    PREPROCESS = "preprocess"
    VISION_EMBED = "vision_embed"
    VISION_BLOCK = "vision_block"
    VISION_NORM = "vision_norm"
    RESAMPLER = "resampler"
    EMBED = "embed"
    LAYERS = "layers"
    LOGITS = "logits"


class Field:
    """The keys of requests and events."""

    OP = "op"
    ID = "id"
    EVENT = "event"
    CODE = "code"
    MESSAGE = "message"
    PROTOCOL = "protocol"
    TOOLKIT_VERSION = "version"
    TARGET = "target"
    PROGRAM_ID = "program_id"
    CPU_FEATURES = "cpu_features"
    REFUSED = "refused"
    BLOCKS = "blocks"
    THREADS = "threads"
    CPU = "cpu"
    MEMORY_BYTES = "memory_bytes"
    BUNDLE = "bundle"
    WINDOW = "window"
    LOAD_MS = "load_ms"
    WEIGHTS_BYTES = "weights_bytes"
    ARCHITECTURE = "architecture"
    IMAGE_TOKENS = "image_tokens"
    MAX_SLICES = "max_slices"
    PATH = "path"
    IMAGE = "image"
    IMAGES = "images"
    GRID = "grid"
    ENCODE_MS = "encode_ms"
    REMEMBERED = "remembered"
    STAGE = "stage"
    DONE = "done"
    TOTAL = "total"
    MESSAGES = "messages"
    ROLE = "role"
    CONTENT = "content"
    MAX_NEW_TOKENS = "max_new_tokens"
    DO_SAMPLE = "do_sample"
    TEMPERATURE = "temperature"
    TOP_K = "top_k"
    TOP_P = "top_p"
    REPETITION_PENALTY = "repetition_penalty"
    SEED = "seed"
    STOP = "stop"
    AS_ORIGINAL = "as_original"
    TOP_LOGPROBS = "top_logprobs"
    LOOKUP = "lookup"
    TOKEN = "token"
    LOGPROB = "logprob"
    TOP = "top"
    TEXT = "text"
    IDS = "ids"
    STATISTICS = "statistics"
    PREFILL_MS = "prefill_ms"
    DECODE_MS = "decode_ms"
    PREFILL_TOK_S = "prefill_tok_s"
    DECODE_TOK_S = "decode_tok_s"
    PROMPT_TOKENS = "prompt_tokens"
    REUSED_TOKENS = "reused_tokens"
    GENERATED_TOKENS = "generated_tokens"
    DECODE_STEPS = "decode_steps"
    DRAFTED_TOKENS = "drafted_tokens"
    ACCEPTED_TOKENS = "accepted_tokens"
    PEAK_RSS_BYTES = "peak_rss_bytes"
    IMAGE_START = "image_start"
    SLICE_STARTS = "slice_starts"
    WHAT = "what"
    INPUT = "input"
    OUTPUT = "output"
    INDEX = "index"
    PER_LAYER = "per_layer"
    PINNED = "pinned"
    SHAPE = "shape"
    WIDTH = "width"
    HEIGHT = "height"
    COLUMNS = "columns"
    ROWS = "rows"
    PASSED = "passed"
    CHECKS = "checks"
    QUESTION = "question"
    EXPECTED = "expected"
    BYTES = "bytes"
    MS = "ms"
    LAUNCH_US = "launch_us"
    KERNELS = "kernels"
    NAME = "name"
    CALLS = "calls"


class ErrorCode:
    """What errors can be told apart by."""

    INVALID_REQUEST = "invalid_request"
    INVALID_TEXT = "invalid_text"
    INVALID_PICTURE = "invalid_picture"
    INVALID_EMBEDDINGS = "invalid_embeddings"
    INVALID_BUNDLE = "invalid_bundle"
    OTHER_PROGRAM = "other_program"
    NOT_LOADED = "not_loaded"
    NO_GOLDEN = "no_golden"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    UNKNOWN_PICTURE = "unknown_picture"
    FILE_ERROR = "file_error"
    PROMPT_TOO_LONG = "prompt_too_long"
    INVALID_LOGITS = "invalid_logits"
    UNSUPPORTED_CPU = "unsupported_cpu"
    ALREADY_RUNNING = "already_running"
    INTERNAL = "internal"
