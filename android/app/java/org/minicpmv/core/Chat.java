package org.minicpmv.core;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** A conversation: questions, some with pictures, and answers. */
public final class Chat {
  private static final int TITLE = 60; // characters
  private static final long MAX_TIME = 1L << 53; // milliseconds since 1970; exact in JSON

  public final String id;
  private final List<Turn> turns = new ArrayList<>();
  private String named; // the title that the user gave it; null: none
  private long changed; // milliseconds since 1970

  public Chat(String id, long now) {
    this.id = id;
    this.changed = now;
  }

  public synchronized List<Turn> turns() {
    return new ArrayList<>(turns);
  }

  public synchronized long changed() {
    return changed;
  }

  /** The title that the user gave it, or else the first question; shortened for lists. */
  public synchronized String title() {
    if (named != null) {
      return named;
    }
    return turns.isEmpty() ? "" : shortened(turns.get(0).text);
  }

  /** Gives it a title; an empty one restores the first question. */
  public synchronized void rename(String title) {
    String text = shortened(title);
    named = text.isEmpty() ? null : text;
  }

  /** Whether the title or a turn contains a text in lower case. */
  public synchronized boolean contains(String text) {
    boolean found = title().toLowerCase(Locale.ROOT).contains(text);
    for (Turn turn : turns) {
      found = found || turn.text.toLowerCase(Locale.ROOT).contains(text);
    }
    return found;
  }

  private static String shortened(String whole) {
    String text = whole.trim().replaceAll("\\s+", " ");
    if (text.codePointCount(0, text.length()) <= TITLE) {
      return text;
    }
    return text.substring(0, text.offsetByCodePoints(0, TITLE)) + "…";
  }

  /**
   * Appends a question, or replaces an earlier one and removes everything after it.
   *
   * @param from index of the question to replace; the number of turns to append
   */
  public synchronized void ask(int from, Turn question, long now) {
    boolean isQuestion = from == turns.size() || (from >= 0 && from < turns.size());
    if (!isQuestion || (from < turns.size() && !turns.get(from).isUser())) {
      throw new IllegalArgumentException("no question at index " + from);
    }
    turns.subList(from, turns.size()).clear();
    turns.add(question);
    changed = now;
  }

  /** Adds an answer. */
  public synchronized void answer(Turn answer, long now) {
    turns.add(answer);
    changed = now;
  }

  /**
   * Returns the messages for the engine. The model sees one picture, before the first question, so
   * its conversation begins at the question with the latest picture. Unanswered questions are
   * skipped, except the last.
   */
  public synchronized JSONArray messages() {
    JSONArray messages = new JSONArray();
    for (int i = pictureIndex(); i < turns.size(); i++) {
      Turn turn = turns.get(i);
      boolean isLast = i == turns.size() - 1;
      Turn next = isLast ? null : turns.get(i + 1);
      if (turn.isUser() && isLast) {
        messages.put(message(turn));
      } else if (turn.isUser() && !next.isUser() && !next.text.isEmpty()) {
        messages.put(message(turn));
        messages.put(message(next));
      }
    }
    return messages;
  }

  /** Returns the id of the picture in the engine's conversation, or null. */
  public synchronized String picture() {
    return turns.isEmpty() ? null : turns.get(pictureIndex()).picture;
  }

  /** Returns the ids of all pictures. */
  public synchronized List<String> pictures() {
    List<String> pictures = new ArrayList<>();
    for (Turn turn : turns) {
      if (turn.picture != null) {
        pictures.add(turn.picture);
      }
    }
    return pictures;
  }

  public synchronized JSONObject toJson() {
    JSONArray array = new JSONArray();
    for (Turn turn : turns) {
      array.put(turn.toJson());
    }
    return Json.object(
        "id", id, "title", title(), "named", named, "changed", changed, "turns", array);
  }

  /**
   * Reads what {@link #toJson} wrote.
   *
   * @throws JSONException if it is not a valid chat
   */
  static Chat fromJson(String id, JSONObject json) throws JSONException {
    Object changed = json.opt("changed");
    boolean isInteger = changed instanceof Long || changed instanceof Integer;
    long time = isInteger ? ((Number) changed).longValue() : -1;
    if (time < 0 || time > MAX_TIME) {
      throw new JSONException("changed is " + changed + "; expected milliseconds since 1970");
    }
    Chat chat = new Chat(id, time);
    if (!json.isNull("named")) {
      String named = Json.text(json, "named");
      if (named == null || !Json.isUnicode(named)) {
        throw new JSONException("the chat's title is not a valid string");
      }
      chat.rename(named);
    }
    JSONArray turns = json.getJSONArray("turns");
    for (int i = 0; i < turns.length(); i++) {
      chat.turns.add(Turn.fromJson(turns.getJSONObject(i)));
    }
    return chat;
  }

  private int pictureIndex() {
    for (int i = turns.size() - 1; i > 0; i--) {
      if (turns.get(i).picture != null) {
        return i;
      }
    }
    return 0;
  }

  private static JSONObject message(Turn turn) {
    return Json.object("role", turn.role, "content", turn.text);
  }
}
