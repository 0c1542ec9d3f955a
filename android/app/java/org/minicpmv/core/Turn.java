package org.minicpmv.core;

import org.json.JSONException;
import org.json.JSONObject;

/** One turn of a conversation. */
public final class Turn {
  public static final String USER = "user";
  public static final String ASSISTANT = "assistant";

  public final String role;
  public final String text;
  public final String picture; // of a user's turn: its id, or null
  public final String stop; // of an answer: why it ended
  public final JSONObject speed; // of an answer: what it took, or null

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
   * @throws JSONException if it is no turn, or not as it was written
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
        kept(json, "text"),
        kept(json, "picture"),
        kept(json, "stop"),
        json.optJSONObject("speed"));
  }

  /** Returns a text, or null where there is none of this name. */
  private static String kept(JSONObject json, String name) throws JSONException {
    String text = Json.text(json, name);
    if (!json.isNull(name) && (text == null || !Json.isUnicode(text))) {
      throw new JSONException(name + " of a turn is no text");
    }
    return text;
  }
}
