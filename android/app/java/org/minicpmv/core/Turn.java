package org.minicpmv.core;

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

  /** Returns null for what is no turn. */
  static Turn fromJson(JSONObject json) {
    String role = Json.text(json, "role");
    String text = Json.text(json, "text");
    if (text == null || !(USER.equals(role) || ASSISTANT.equals(role))) {
      return null;
    }
    return new Turn(
        role,
        text,
        Json.text(json, "picture"),
        Json.text(json, "stop"),
        json.optJSONObject("speed"));
  }
}
