package org.minicpmv.api;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.minicpmv.core.Json;

/**
 * The messages of a request: the conversation for the model, and its picture.
 *
 * <p>The picture precedes the first question. So the conversation begins with the turn that has the
 * latest picture. The model knows no system turns: their texts, all of them in order, are put before
 * the first question of this conversation, each on its own lines. The rules are those of
 * `runtime/serve/messages.py`.
 */
final class Conversation {
  private static final String USER = "user";
  private static final String ASSISTANT = "assistant";
  private static final List<String> INSTRUCTIONS = Arrays.asList("system", "developer");
  private static final List<String> ROLES =
      Arrays.asList(USER, ASSISTANT, "system", "developer");
  private static final List<String> READ = Arrays.asList("role", "content", "name");

  final JSONArray messages = new JSONArray(); // in the engine's format
  final byte[] picture; // a file; null: none
  final boolean overviewOnly; // of a model that cuts pictures

  Conversation(Object turns) throws ApiError {
    if (!(turns instanceof List)) {
      throw ApiError.wrong("messages", "expected a list");
    }
    List<SpokenTurn> spoken = new ArrayList<>();
    StringBuilder instructions = new StringBuilder();
    int number = 0;
    for (Object value : (List<?>) turns) {
      SpokenTurn turn = new SpokenTurn(value, "messages[" + number++ + "]");
      if (!INSTRUCTIONS.contains(turn.role)) {
        spoken.add(turn);
      } else if (!turn.text.trim().isEmpty()) {
        instructions.append(turn.text).append('\n');
      }
    }
    check(spoken);
    int first = 0;
    for (int i = 0; i < spoken.size(); i++) {
      first = spoken.get(i).picture == null ? first : i;
    }
    for (SpokenTurn turn : spoken.subList(first, spoken.size())) {
      String before = messages.length() == 0 ? instructions.toString() : "";
      messages.put(Json.object("role", turn.role, "content", unicode(before + turn.text)));
    }
    DataUrl shown = spoken.get(first).picture;
    picture = shown == null ? null : shown.content();
    overviewOnly = shown != null && shown.isLow;
  }

  /** User and assistant take turns, a user first and last, and the last turn asks something. */
  private static void check(List<SpokenTurn> spoken) throws ApiError {
    if (spoken.isEmpty()) {
      throw invalid("the conversation is empty; expected at least one user turn");
    }
    for (int i = 0; i < spoken.size(); i++) {
      String expected = i % 2 == 0 ? USER : ASSISTANT;
      if (!spoken.get(i).role.equals(expected)) {
        throw invalid("message " + i + " is not of role " + expected);
      }
    }
    if (spoken.size() % 2 == 0) {
      throw invalid("the last message is the assistant's; expected a user's");
    }
    if (spoken.get(spoken.size() - 1).text.trim().isEmpty()) {
      throw invalid("the prompt is empty; expected a question");
    }
  }

  private static String unicode(String text) throws ApiError {
    if (!Json.isUnicode(text)) {
      throw invalid("the text contains half of a UTF-16 pair; remove it");
    }
    return text;
  }

  private static ApiError invalid(String what) {
    return new ApiError(400, "invalid_messages", "messages", what);
  }

  /** One turn, as it was sent. */
  private static final class SpokenTurn {
    final String role;
    final String text;
    DataUrl picture; // null: none

    SpokenTurn(Object value, String where) throws ApiError {
      Map<String, Object> turn = Fields.object(value);
      if (turn == null) {
        throw ApiError.wrong(where, "expected an object");
      }
      Object given = turn.get("role");
      if (!ROLES.contains(given)) {
        throw ApiError.unsupported(
            where + ".role", "is " + Shown.of(given) + "; expected one of " + ROLES);
      }
      role = (String) given;
      for (Map.Entry<String, Object> field : turn.entrySet()) {
        // Clients return what they received, empty fields included.
        if (!READ.contains(field.getKey()) && !isEmpty(field.getValue())) {
          throw ApiError.unsupported(
              where + "." + Shown.beginning(field.getKey()), "is not supported");
        }
      }
      Object content = turn.get("content");
      if (content == null && !role.equals(USER)) {
        text = ""; // an empty answer
      } else if (content instanceof String) {
        text = (String) content;
      } else if (content instanceof List) {
        text = parts((List<?>) content, where);
      } else {
        throw ApiError.wrong(where + ".content", "expected a text or a list of parts");
      }
    }

    private String parts(List<?> parts, String where) throws ApiError {
      StringBuilder texts = new StringBuilder();
      boolean isFirst = true;
      for (int i = 0; i < parts.size(); i++) {
        String at = where + ".content[" + i + "]";
        Map<String, Object> part = Fields.object(parts.get(i));
        Object kind = part == null ? null : part.get("type");
        if ("text".equals(kind) && part.get("text") instanceof String) {
          texts.append(isFirst ? "" : "\n").append(part.get("text"));
          isFirst = false;
        } else if ("image_url".equals(kind) && role.equals(USER)) {
          if (picture != null) {
            throw ApiError.unsupported(at, "is a second picture; the model sees one in a turn");
          }
          picture = new DataUrl(part.get("image_url"), at);
        } else {
          throw ApiError.unsupported(
              at, "is of type " + Shown.of(kind) + "; expected text, or a user's image_url");
        }
      }
      return texts.toString();
    }

    private static boolean isEmpty(Object value) {
      return value == null
          || value.equals("")
          || value.equals(Boolean.FALSE)
          || value instanceof List && ((List<?>) value).isEmpty()
          || value instanceof Map && ((Map<?, ?>) value).isEmpty();
    }
  }
}
