package org.minicpmv.api;

import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Fields that this server does not implement: which it ignores, and which it refuses.
 *
 * <p>The table is `configs/openai_fields.json`, which `runtime/serve/fields.py` reads, too.
 */
final class Fields {
  static final String FILE = "openai_fields.json";

  private final Set<String> ignored = new HashSet<>();
  private final Map<String, Object> neutral;

  /** @param content of the table */
  Fields(byte[] content) {
    try {
      Map<String, Object> table = object(StrictJson.parse(content));
      for (Object name : (List<?>) table.get("ignored")) {
        ignored.add((String) name);
      }
      neutral = object(table.get("neutral"));
    } catch (ApiError e) {
      throw new IllegalStateException("the app's own file " + FILE + " is damaged", e);
    }
  }

  /** Refuses fields that would change the answer, or are unknown; null counts as missing. */
  void check(Map<String, Object> given, Collection<String> ours, String prefix) throws ApiError {
    for (Map.Entry<String, Object> field : given.entrySet()) {
      String name = prefix + field.getKey();
      Object value = field.getValue();
      if (value == null || ours.contains(field.getKey()) || ignored.contains(name)) {
        continue;
      }
      if (!neutral.containsKey(name)) {
        throw ApiError.unsupported(Shown.beginning(name), "is not supported");
      }
      List<?> accepted = (List<?>) neutral.get(name);
      if (!isEmpty(value) && !hasSame(accepted, value)) {
        throw ApiError.unsupported(
            name, "is " + Shown.of(value) + "; this server supports only " + listed(accepted));
      }
    }
  }

  /** Returns a value as an object; null if it is none. */
  @SuppressWarnings("unchecked") // the parser's maps have no other keys
  static Map<String, Object> object(Object value) {
    return value instanceof Map ? (Map<String, Object>) value : null;
  }

  private static String listed(List<?> values) {
    StringBuilder text = new StringBuilder();
    for (Object value : values) {
      text.append(text.length() == 0 ? "" : " or ").append(Shown.of(value));
    }
    return text.length() == 0 ? "none" : text.toString();
  }

  /** Whether a value requests nothing, such as a bias of 0 for some tokens. */
  private static boolean isEmpty(Object value) {
    if (value instanceof Map) {
      for (Object one : ((Map<?, ?>) value).values()) {
        if (!(one instanceof Number) || ((Number) one).doubleValue() != 0) {
          return false;
        }
      }
      return true;
    }
    return value.equals("") || value instanceof List && ((List<?>) value).isEmpty();
  }

  private static boolean hasSame(List<?> accepted, Object value) {
    for (Object one : accepted) {
      boolean areNumbers = one instanceof Number && value instanceof Number;
      if (areNumbers
          ? ((Number) one).doubleValue() == ((Number) value).doubleValue()
          : one.equals(value)) {
        return true;
      }
    }
    return false;
  }
}
