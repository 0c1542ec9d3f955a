package org.minicpmv.core;

import org.json.JSONException;
import org.json.JSONObject;

/** One turn of a conversation. */
public final class Turn {
  public static final String USER = "user";
  public static final String ASSISTANT = "assistant";

  public final String role;
  public final String text;
  public final String picture; // a question's picture id, or null
  public final String stop; // why an answer ended
  public final JSONObject speed; // an answer's timings, or null

  private Turn(String role, String text, String picture, String stop, JSONObject speed) {
    this.role = role;
    this.text = text;
    this.picture = picture;
    this.stop = stop;
    this.speed = speed;
  }

  public static Turn question(String text, String picture) {
    return new Turn(USER, text, picture, null, null);
  }

  public static Turn answer(String text, String stop, JSONObject speed) {
    return new Turn(ASSISTANT, text, null, stop, speed);
  }

  public boolean isUser() {
    return role.equals(USER);
  }

  JSONObject toJson() {
    return Json.object(
        "role", role, "text", text, "picture", picture, "stop", stop, "speed", speed);
  }

  /**
   * Reads what {@link #toJson} wrote.
   *
   * @throws JSONException if it is not a valid turn
   */
  static Turn fromJson(JSONObject json) throws JSONException {
    String role = Json.text(json, "role");
    if (!(USER.equals(role) || ASSISTANT.equals(role)) || Json.text(json, "text") == null) {
      throw new JSONException("a turn is neither a question nor an answer, or has no text");
    }
    if (!json.isNull("speed") && json.optJSONObject("speed") == null) {
      throw new JSONException("speed of a turn is " + json.opt("speed"));
    }
    return new Turn(
        role,
        string(json, "text"),
        string(json, "picture"),
        string(json, "stop"),
        json.optJSONObject("speed"));
  }

  /** Returns a string, or null if there is none of this name. */
  private static String string(JSONObject json, String name) throws JSONException {
    String text = Json.text(json, name);
    if (!json.isNull(name) && (text == null || !Json.isUnicode(text))) {
      throw new JSONException(name + " of a turn is not a valid string");
    }
    return text;
  }
}
