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

  /**
   * @param line the engine's reply
   * @param steps entries of `logprobs.content`; null: they are not asked for
   */
  JSONObject whole(JSONObject line, JSONArray steps) {
    JSONObject message =
        Json.object(
            "role", "assistant", "content", line.optString("text"), "refusal", JSONObject.NULL);
    JSONObject choice =
        Json.object(
            "index", 0,
            "message", message,
            "logprobs", logprobs(steps),
            "finish_reason", reason(line));
    return about("chat.completion", new JSONArray().put(choice), usage(line));
  }

  /** Returns the event that begins a stream. */
  String first() {
    return chunk(Json.object("role", "assistant", "content", ""), null, JSONObject.NULL);
  }

  /** Returns the event with a piece of the text and the tokens that it came from, as above. */
  String piece(String text, JSONArray steps) {
    return chunk(Json.object("content", text), steps, JSONObject.NULL);
  }

  /** Returns the event with the reason why the answer ended. */
  String last(JSONObject line) {
    return chunk(new JSONObject(), null, reason(line));
  }

  /** Returns the event with the token counts. */
  String usageEvent(JSONObject line) {
    return event(about("chat.completion.chunk", new JSONArray(), usage(line)));
  }

  private String chunk(JSONObject delta, JSONArray steps, Object reason) {
    JSONObject choice =
        Json.object(
            "index", 0, "delta", delta, "logprobs", logprobs(steps), "finish_reason", reason);
    return event(about("chat.completion.chunk", new JSONArray().put(choice), null));
  }

  private static Object logprobs(JSONArray steps) {
    return steps == null
        ? JSONObject.NULL
        : Json.object("content", steps, "refusal", JSONObject.NULL);
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
