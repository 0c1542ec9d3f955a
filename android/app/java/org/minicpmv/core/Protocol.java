package org.minicpmv.core;

/**
 * The names of the engine's protocol that the app uses; runtime/engine/PROTOCOL.md says what they
 * mean. A test compares them with `runtime/engine_client/protocol.py`.
 */
final class Protocol {
  static final int VERSION = 1;

  private Protocol() {}

  /** What a request asks for. */
  static final class Op {
    static final String LOAD = "load";
    static final String IMAGE = "image";
    static final String CHAT = "chat";
    static final String CANCEL = "cancel";
    static final String RESET = "reset";
    static final String SAVE_IMAGE = "save_image";
    static final String RESTORE_IMAGE = "restore_image";
    static final String SELF_CHECK = "selfcheck";
    static final String THREADS = "threads";

    private Op() {}
  }

  /** What a line of the engine is. */
  static final class Event {
    static final String PROGRESS = "progress";
    static final String TEXT = "text";
    static final String TOKEN = "token";
    static final String DONE = "done";
    static final String ERROR = "error";
    static final String SOCKET = "socket";

    private Event() {}
  }

  /** The keys of requests and events. */
  static final class Field {
    static final String OP = "op";
    static final String ID = "id";
    static final String EVENT = "event";
    static final String CODE = "code";
    static final String MESSAGE = "message";
    static final String PROTOCOL = "protocol";
    static final String TOOLKIT_VERSION = "version";
    static final String TARGET = "target";
    static final String PROGRAM_ID = "program_id";
    static final String CPU_FEATURES = "cpu_features";
    static final String REFUSED = "refused";
    static final String KINDS = "kinds";
    static final String THREADS = "threads";
    static final String CPU = "cpu";
    static final String BUNDLE = "bundle";
    static final String WINDOW = "window";
    static final String KINDS_FILE = "kinds_file";
    static final String RECEIVE_WEIGHTS = "receive_weights";
    static final String LOAD_MS = "load_ms";
    static final String IMAGE_TOKENS = "image_tokens";
    static final String MAX_SLICES = "max_slices";
    static final String PATH = "path";
    static final String IMAGE = "image";
    static final String GRID = "grid";
    static final String ENCODE_MS = "encode_ms";
    static final String STAGE = "stage";
    static final String DONE = "done";
    static final String TOTAL = "total";
    static final String MESSAGES = "messages";
    static final String ROLE = "role";
    static final String CONTENT = "content";
    static final String MAX_NEW_TOKENS = "max_new_tokens";
    static final String DO_SAMPLE = "do_sample";
    static final String TEMPERATURE = "temperature";
    static final String TOP_K = "top_k";
    static final String TOP_P = "top_p";
    static final String REPETITION_PENALTY = "repetition_penalty";
    static final String STOP = "stop";
    static final String TEXT = "text";
    static final String STATISTICS = "statistics";
    static final String PREFILL_TOK_S = "prefill_tok_s";
    static final String DECODE_TOK_S = "decode_tok_s";
    static final String PROMPT_TOKENS = "prompt_tokens";
    static final String GENERATED_TOKENS = "generated_tokens";
    static final String PEAK_RSS_BYTES = "peak_rss_bytes";
    static final String PASSED = "passed";
    static final String CHECKS = "checks";
    static final String NAME = "name";
    static final String QUESTION = "question";
    static final String EXPECTED = "expected";

    private Field() {}
  }
}
