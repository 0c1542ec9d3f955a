package org.minicpmv.core;

import java.util.Arrays;
import java.util.List;

/** An error that the page explains: a code for programs, and one sentence for people. */
public final class EngineException extends Exception {
  private static final long serialVersionUID = 1;

  // The engine's own codes, see runtime/engine/PROTOCOL.md, as far as the app tells them apart:
  public static final String OUT_OF_MEMORY = "out_of_memory";
  public static final String INVALID_PICTURE = "invalid_picture";
  public static final String INVALID_TEXT = "invalid_text"; // cannot be saved as UTF-8
  public static final String INVALID_BUNDLE = "invalid_bundle";
  public static final String UNKNOWN_PICTURE = "unknown_picture"; // the engine evicted it
  public static final String CANCELLED = "cancelled";
  public static final String FILE_ERROR = "file_error";
  public static final String INTERNAL = "internal"; // a bug in the app

  // The app's codes:
  public static final String DIED = "engine_died"; // exited for an unknown reason
  public static final String KILLED = "engine_killed"; // by the system, usually for its memory
  public static final String CRASHED = "engine_crashed"; // a bug in the engine
  public static final String FORBIDDEN = "engine_forbidden"; // made a system call Android blocks
  public static final String SILENT = "engine_silent"; // hangs
  public static final String NO_ENGINE = "no_engine"; // cannot be started
  public static final String NO_WEIGHTS = "no_weights";
  public static final String WRONG_WEIGHTS = "wrong_weights"; // the size does not match
  public static final String DAMAGED_WEIGHTS = "damaged_weights"; // the SHA-256 does not match
  public static final String WEIGHTS_GONE = "weights_gone"; // their file, in another app
  public static final String WEIGHTS_LOCKED = "weights_locked"; // the app may not read it any more
  public static final String NO_SPACE = "no_space";
  public static final String BUSY = "busy";

  private static final List<String> DEATHS =
      Arrays.asList(DIED, KILLED, CRASHED, FORBIDDEN, SILENT, NO_ENGINE);

  private final String code;

  public EngineException(String code, String message) {
    super(message);
    this.code = code;
  }

  public EngineException(String code, String message, Throwable cause) {
    super(message, cause);
    this.code = code;
  }

  public String code() {
    return code;
  }

  /** Whether the engine process is gone, or could not be started. */
  public boolean isEngineLost() {
    return DEATHS.contains(code);
  }
}
