package org.minicpmv.core;

import java.util.ArrayList;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** A conversation: questions, some with pictures, and answers. */
public final class Chat {
  private static final int TITLE = 60; // characters
  private static final long MAX_TIME = 1L << 53; // milliseconds since 1970; exact in JSON

  public final String id;
  private final List<Turn> turns = new ArrayList<>();
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

  /** The first question, shortened for lists. */
  public synchronized String title() {
    String text = turns.isEmpty() ? "" : turns.get(0).text.trim().replaceAll("\\s+", " ");
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
    return Json.object("id", id, "title", title(), "changed", changed, "turns", array);
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
