package org.minicpmv.core;

import java.util.Arrays;
import java.util.List;

/** Something went wrong that the page explains: a code for programs, one sentence for people. */
public final class EngineException extends Exception {
  private static final long serialVersionUID = 1;

  // Beside the engine's own codes, which are in runtime/engine/PROTOCOL.md:
  public static final String DIED = "engine_died"; // ended by itself; unknown why
  public static final String KILLED = "engine_killed"; // by the system, most often for its memory
  public static final String CRASHED = "engine_crashed"; // a mistake of ours
  public static final String FORBIDDEN = "engine_forbidden"; // a system call that Android refuses
  public static final String SILENT = "engine_silent"; // says nothing any more
  public static final String NO_ENGINE = "no_engine"; // cannot be started
  public static final String NO_WEIGHTS = "no_weights";
  public static final String WRONG_WEIGHTS = "wrong_weights"; // another size: half, or others'
  public static final String DAMAGED_WEIGHTS = "damaged_weights"; // another SHA-256
  public static final String NO_SPACE = "no_space";
  public static final String OUT_OF_MEMORY = "out_of_memory";
  public static final String INVALID_PICTURE = "invalid_picture";
  public static final String INVALID_TEXT = "invalid_text"; // cannot be kept
  public static final String CANCELLED = "cancelled";
  public static final String BUSY = "busy";
  public static final String FILE_ERROR = "file_error";
  public static final String OTHER_PROGRAM = "other_program";

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

  /** Whether the engine is gone. */
  public boolean isDeath() {
    return DEATHS.contains(code);
  }
}
