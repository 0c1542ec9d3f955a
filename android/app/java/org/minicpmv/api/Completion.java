package org.minicpmv.api;

import java.security.SecureRandom;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Json;

/** An answer in OpenAI's format: whole, or as the chunks of a stream. */
final class Completion {
  static final String END = "data: [DONE]\n\n";
  private static final SecureRandom RANDOM = new SecureRandom();

  private final String id = String.format("chatcmpl-%016x", RANDOM.nextLong());
  private final long created = System.currentTimeMillis() / 1000;
  private final String model;

  Completion(String model) {
    this.model = model;
  }

  /** Returns an event of a stream. */
  static String event(JSONObject content) {
    return "data: " + Shown.ascii(content) + "\n\n";
  }

  /** @param line the engine's reply */
  JSONObject whole(JSONObject line) {
    JSONObject message =
        Json.object(
            "role", "assistant", "content", line.optString("text"), "refusal", JSONObject.NULL);
    JSONObject choice =
        Json.object(
            "index", 0,
            "message", message,
            "logprobs", JSONObject.NULL,
            "finish_reason", reason(line));
    return about("chat.completion", new JSONArray().put(choice), usage(line));
  }

  /** Returns the event that begins a stream. */
  String first() {
    return chunk(Json.object("role", "assistant", "content", ""), JSONObject.NULL);
  }

  /** Returns the event with a piece of the text. */
  String piece(String text) {
    return chunk(Json.object("content", text), JSONObject.NULL);
  }

  /** Returns the event with the reason why the answer ended. */
  String last(JSONObject line) {
    return chunk(new JSONObject(), reason(line));
  }

  /** Returns the event with the token counts. */
  String usageEvent(JSONObject line) {
    return event(about("chat.completion.chunk", new JSONArray(), usage(line)));
  }

  private String chunk(JSONObject delta, Object reason) {
    JSONObject choice =
        Json.object(
            "index", 0, "delta", delta, "logprobs", JSONObject.NULL, "finish_reason", reason);
    return event(about("chat.completion.chunk", new JSONArray().put(choice), null));
  }

  private JSONObject about(String kind, JSONArray choices, JSONObject usage) {
    return Json.object(
        "id", id,
        "object", kind,
        "created", created,
        "model", model,
        "choices", choices,
        "usage", usage);
  }

  private static String reason(JSONObject line) {
    return line.optString("stop").equals("length") ? "length" : "stop";
  }

  private static JSONObject usage(JSONObject line) {
    JSONObject statistics = line.optJSONObject("statistics");
    JSONObject known = statistics == null ? new JSONObject() : statistics;
    long prompt = known.optLong("prompt_tokens");
    long generated = known.optLong("generated_tokens");
    return Json.object(
        "prompt_tokens", prompt,
        "completion_tokens", generated,
        "total_tokens", prompt + generated,
        "prompt_tokens_details",
            Json.object("cached_tokens", known.optLong("reused_tokens")));
  }
}
