package org.minicpmv.api;

import java.nio.charset.StandardCharsets;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Json;

/** A token of an answer and the likeliest ones in its place, in OpenAI's format. */
final class TokenStep {
  private static final Pattern BYTE = Pattern.compile("<0x([0-9A-F]{2})>");
  private static final String SPACE = "\u2581"; // how the vocabulary spells a space
  private static final int LAST_CONTROL = 2; // ids from 0 on that have no text

  final JSONObject entry; // of `logprobs.content`

  /** @param line the engine's event */
  TokenStep(JSONObject line) {
    entry = entry(line);
    JSONArray top = new JSONArray();
    JSONArray likeliest = line.optJSONArray("top");
    for (int i = 0; likeliest != null && i < likeliest.length(); i++) {
      top.put(entry(likeliest.optJSONObject(i)));
    }
    Json.put(entry, "top_logprobs", top);
  }

  /** Returns a token; its bytes are null if it has no text, such as the answer's end. */
  private static JSONObject entry(JSONObject token) {
    int id = token.optInt("token");
    String piece = token.optString("piece", "<" + id + ">");
    Matcher oneByte = BYTE.matcher(piece); // of a character that the vocabulary lacks
    String text = piece.replace(SPACE, " ");
    byte[] spelled = text.getBytes(StandardCharsets.UTF_8);
    if (oneByte.matches()) {
      spelled = new byte[] {(byte) Integer.parseInt(oneByte.group(1), 16)};
      text = String.format("bytes:\\x%02x", spelled[0]);
    }
    boolean hasText = id > LAST_CONTROL && token.has("piece");
    return Json.object(
        "token", text,
        "logprob", token.optDouble("logprob"),
        "bytes", hasText ? numbers(spelled) : JSONObject.NULL);
  }

  private static JSONArray numbers(byte[] bytes) {
    JSONArray numbers = new JSONArray();
    for (byte one : bytes) {
      numbers.put(one & 0xff);
    }
    return numbers;
  }
}
