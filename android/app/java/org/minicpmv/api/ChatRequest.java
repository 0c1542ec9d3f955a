package org.minicpmv.api;

import java.math.BigInteger;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Json;
import org.minicpmv.core.Settings;

/**
 * A request for a chat completion, validated in full before anything is computed.
 *
 * <p>The rules are those of `runtime/serve/request.py`; where a request says nothing, the user's
 * settings apply.
 */
final class ChatRequest {
  private static final List<String> OURS =
      Arrays.asList(
          "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
          "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop",
          "logprobs", "top_logprobs");
  private static final int STOP_LIMIT = 4; // texts, as OpenAI has it
  private static final long TOKENS_LIMIT = 1 << 20; // of an answer
  private static final long LOGPROBS_LIMIT = 20;
  private static final long ANY = -1; // how clients of other servers ask for the default

  final Conversation conversation;
  final boolean isStream;
  final boolean wantsLogprobs;
  final boolean wantsUsage; // at the end of a stream
  final JSONObject options = new JSONObject(); // fields of the engine's request

  private final Map<String, Object> given;

  /**
   * @param raw the request's JSON
   * @param model the name of the only model
   */
  ChatRequest(Object raw, String model, Settings settings, Fields fields) throws ApiError {
    given = Fields.object(raw);
    if (given == null) {
      throw ApiError.wrong(null, "the body is no JSON object");
    }
    fields.check(given, OURS, "");
    Object asked = given.get("model");
    if (asked != null && !asked.equals(model)) {
      throw noModel(asked, model);
    }
    conversation = new Conversation(given.get("messages"));
    Object streaming = given.get("stream_options");
    Map<String, Object> stream = Fields.object(streaming);
    if (streaming != null && stream == null) {
      throw ApiError.wrong("stream_options", "expected {\"include_usage\": true or false}");
    } else if (stream != null) {
      fields.check(stream, Collections.singleton("include_usage"), "stream_options.");
    }
    isStream = flag(given, "stream", "");
    wantsUsage = stream != null && flag(stream, "include_usage", "stream_options.");
    readSampling(settings.sampling());
    put("max_new_tokens", limit(settings.sampling().optLong("max_new_tokens")));
    Long seed = whole("seed", ANY, Long.MAX_VALUE);
    put("seed", seed == null || seed == ANY ? null : seed);
    put("stop", stops());
    wantsLogprobs = flag(given, "logprobs", "");
    Long likeliest = topLogprobs();
    put("top_logprobs", wantsLogprobs ? likeliest : null);
  }

  /** Returns how many of the likeliest tokens the answer is to tell. */
  private Long topLogprobs() throws ApiError {
    Long count = whole("top_logprobs", 0, LOGPROBS_LIMIT);
    if (count != null && count > 0 && !wantsLogprobs) {
      throw ApiError.wrong("top_logprobs", "is " + count + " without `logprobs`: true");
    }
    return count == null ? 0 : count;
  }

  static ApiError noModel(Object asked, String model) {
    return new ApiError(
        404, "model_not_found", "model",
        "no model " + Shown.of(asked) + "; this server has '" + model + "'");
  }

  /** Reads how to sample; what the request does not say is as in the settings. */
  private void readSampling(JSONObject settings) throws ApiError {
    Double temperature = number("temperature", 0, 2);
    Double topP = number("top_p", 0, 1);
    Long topK = whole("top_k", ANY, 1L << 30); // 0 and -1 mean no limit
    Double penalty = number("repetition_penalty", 0, 10);
    if (penalty != null && penalty == 0) {
      throw ApiError.wrong("repetition_penalty", "is 0; expected a number above 0");
    }
    put("repetition_penalty", penalty == null ? settings.opt("repetition_penalty") : penalty);
    boolean isChosen = temperature != null || topP != null || topK != null;
    // A temperature or top_p of 0 leaves only the likeliest token.
    boolean isGreedy = isZero(temperature) || isZero(topP);
    boolean samples = !isGreedy && (isChosen || settings.optBoolean("do_sample"));
    put("do_sample", samples);
    if (samples) {
      put("temperature", temperature == null ? settings.opt("temperature") : temperature);
      put("top_p", topP == null ? settings.opt("top_p") : topP);
      put("top_k", topK == null ? settings.opt("top_k") : topK < 1 ? null : (Object) topK);
    }
  }

  private static boolean isZero(Double value) {
    return value != null && value == 0;
  }

  private void put(String name, Object value) {
    Json.put(options, name, value);
  }

  /** Returns after how many tokens an answer ends. */
  private long limit(long usual) throws ApiError {
    Long limit = null;
    for (String name : Arrays.asList("max_tokens", "max_completion_tokens")) {
      Object value = given.get(name);
      if (value == null || isNumber(value) && ((Number) value).doubleValue() == ANY) {
        continue;
      }
      Long wanted = whole(name, 1, TOKENS_LIMIT);
      if (limit != null && !limit.equals(wanted)) {
        throw ApiError.wrong(
            "max_tokens", "differs from max_completion_tokens; give one of them");
      }
      limit = wanted;
    }
    return limit == null ? usual : limit;
  }

  private JSONArray stops() throws ApiError {
    Object stop = given.get("stop");
    List<?> texts = stop instanceof String ? Collections.singletonList(stop) : null;
    texts = stop == null ? Collections.emptyList() : stop instanceof List ? (List<?>) stop : texts;
    if (texts == null || texts.size() > STOP_LIMIT) {
      throw ApiError.wrong("stop", "expected a text, or a list of at most " + STOP_LIMIT);
    }
    JSONArray found = new JSONArray();
    for (Iterator<?> each = texts.iterator(); each.hasNext(); ) {
      Object text = each.next();
      if (!(text instanceof String) || !Json.isUnicode((String) text)) {
        throw ApiError.wrong("stop", "has " + Shown.of(text) + "; expected texts");
      } else if (!text.equals("")) {
        found.put(text);
      }
    }
    return found.length() == 0 ? null : found;
  }

  private Long whole(String name, long low, long high) throws ApiError {
    Object value = given.get(name);
    if (value == null) {
      return null;
    }
    boolean isWhole =
        value instanceof BigInteger
            || value instanceof Double && (Double) value == Math.rint((Double) value);
    if (isWhole && isInside(value, low, high)) {
      return ((Number) value).longValue();
    }
    throw outside(name, value, "a whole number", low, high);
  }

  private Double number(String name, long low, long high) throws ApiError {
    Object value = given.get(name);
    if (value == null) {
      return null;
    }
    if (isNumber(value) && isInside(value, low, high)) {
      return ((Number) value).doubleValue();
    }
    throw outside(name, value, "a number", low, high);
  }

  private static boolean isNumber(Object value) {
    return value instanceof BigInteger || value instanceof Double;
  }

  private static boolean isInside(Object value, long low, long high) {
    if (value instanceof BigInteger) {
      BigInteger whole = (BigInteger) value;
      return whole.compareTo(BigInteger.valueOf(low)) >= 0
          && whole.compareTo(BigInteger.valueOf(high)) <= 0;
    }
    double number = (Double) value;
    return number >= low && number <= high && number < Long.MAX_VALUE;
  }

  private static ApiError outside(String name, Object value, String kind, long low, long high) {
    return ApiError.wrong(
        name, "is " + Shown.of(value) + "; expected " + kind + " from " + low + " to " + high);
  }

  private static boolean flag(Map<String, Object> fields, String name, String prefix)
      throws ApiError {
    Object value = fields.get(name);
    if (value != null && !(value instanceof Boolean)) {
      throw ApiError.wrong(
          prefix + name, "is " + Shown.of(value) + "; expected true or false");
    }
    return Boolean.TRUE.equals(value);
  }
}
