package org.minicpmv.api;

import java.util.Iterator;
import java.util.List;
import java.util.Map;
import org.json.JSONObject;

/** How values are written: in error messages, and as JSON that every client can read. */
final class Shown {
  private static final int LIMIT = 80; // characters of a value in a message

  private Shown() {}

  /** Returns the beginning of a value, for an error message. */
  static String of(Object value) {
    StringBuilder text = new StringBuilder();
    write(value, text);
    return beginning(text.toString());
  }

  /** Returns the beginning of a text that the client chose; halves of UTF-16 pairs are escaped. */
  static String beginning(String text) {
    String cut = text.length() > LIMIT ? text.substring(0, LIMIT) : text;
    StringBuilder shown = new StringBuilder();
    for (int i = 0; i < cut.length(); i++) {
      char c = cut.charAt(i);
      boolean isPair =
          i + 1 < cut.length() && Character.isSurrogatePair(c, cut.charAt(i + 1));
      if (isPair) {
        shown.append(c).append(cut.charAt(++i));
      } else if (Character.isSurrogate(c)) {
        shown.append(String.format("\\u%04x", (int) c));
      } else {
        shown.append(c);
      }
    }
    return shown.toString();
  }

  /**
   * Returns JSON in ASCII: some clients end a line, and with it an event, at U+2028 or U+0085.
   */
  static String ascii(JSONObject object) {
    String text = object.toString();
    StringBuilder escaped = new StringBuilder(text.length());
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      if (c < 0x7f) {
        escaped.append(c);
      } else { // only strings have such characters
        escaped.append(String.format("\\u%04x", (int) c));
      }
    }
    return escaped.toString();
  }

  private static void write(Object value, StringBuilder text) {
    if (text.length() > LIMIT) {
      return;
    }
    if (value instanceof String) {
      text.append('\'').append(value).append('\'');
    } else if (value instanceof List) {
      text.append('[');
      for (Iterator<?> each = ((List<?>) value).iterator(); each.hasNext(); ) {
        write(each.next(), text);
        text.append(each.hasNext() ? ", " : "");
      }
      text.append(']');
    } else if (value instanceof Map) {
      text.append('{');
      for (Iterator<?> each = ((Map<?, ?>) value).entrySet().iterator(); each.hasNext(); ) {
        Map.Entry<?, ?> entry = (Map.Entry<?, ?>) each.next();
        write(entry.getKey(), text);
        text.append(": ");
        write(entry.getValue(), text);
        text.append(each.hasNext() ? ", " : "");
      }
      text.append('}');
    } else {
      text.append(value); // null, a number, true or false
    }
  }
}
