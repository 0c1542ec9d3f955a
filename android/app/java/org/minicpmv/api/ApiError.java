package org.minicpmv.api;

import org.json.JSONObject;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.Json;

/** A request that is refused or has failed, in OpenAI's format. */
final class ApiError extends Exception {
  private static final long serialVersionUID = 1;
  private static final int SERVER = 500; // statuses from here on are the server's fault

  final int status;
  private final String code; // for programs; may be null, as the next one
  private final String param; // the field of the request

  ApiError(int status, String code, String param, String message) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }

  /** An invalid value; `param` may be null. */
  static ApiError wrong(String param, String what) {
    String where = param == null ? "" : param + ": ";
    return new ApiError(400, "invalid_value", param, where + what);
  }

  /** A field or value that this server does not support. */
  static ApiError unsupported(String param, String what) {
    return new ApiError(400, "unsupported_parameter", param, param + " " + what);
  }

  /** For a client that should try again later. */
  static ApiError queueFull(String message) {
    return new ApiError(429, "queue_full", null, message + "; try again later");
  }

  static ApiError ending() {
    return new ApiError(503, "ending", null, "the answer was cut off: the server is shutting down");
  }

  /** Maps an error of the model. */
  static ApiError of(EngineException e) {
    if (e.isEngineLost()) { // the next request starts it again
      return new ApiError(503, "engine_died", null, e.getMessage());
    }
    switch (e.code()) {
      case "prompt_too_long":
      case "invalid_request":
      case EngineException.INVALID_TEXT:
      case EngineException.INVALID_PICTURE:
        return new ApiError(400, e.code(), null, e.getMessage());
      case EngineException.CANCELLED:
        return new ApiError(503, "stopped", null, "the user of the phone stopped the answer");
      case EngineException.OUT_OF_MEMORY:
      case EngineException.NO_SPACE:
      case EngineException.NO_WEIGHTS:
      case EngineException.WRONG_WEIGHTS:
      case EngineException.DAMAGED_WEIGHTS:
        return new ApiError(503, e.code(), null, e.getMessage());
      case EngineException.INTERNAL:
        return new ApiError(500, e.code(), null, "internal error of the app; see its log");
      default:
        return new ApiError(500, e.code(), null, e.getMessage());
    }
  }

  /** Returns the body, which can also be sent as an event of a stream. */
  JSONObject toJson() {
    return Json.object(
        "error",
        Json.object(
            "message", getMessage(),
            "type", status < SERVER ? "invalid_request_error" : "server_error",
            "param", param == null ? JSONObject.NULL : param,
            "code", code == null ? JSONObject.NULL : code));
  }
}
