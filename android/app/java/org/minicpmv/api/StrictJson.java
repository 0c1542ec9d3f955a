package org.minicpmv.api;

import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Parses JSON by the standard alone: duplicate keys, NaN and numbers beyond a double are errors.
 * Android's own parser is lenient.
 *
 * <p>Objects become maps, arrays lists, whole numbers BigInteger, others Double, null null. A
 * string may hold half of a UTF-16 pair, as an escape: whoever reads it says which field it is.
 */
final class StrictJson {
  private static final int DEPTH_LIMIT = 100;
  private static final int DIGITS_LIMIT = 300; // a double cannot hold many more

  private final byte[] text;
  private int at;

  private StrictJson(byte[] text) {
    this.text = text;
  }

  /** Returns the value of a UTF-8 text. */
  static Object parse(byte[] text) throws ApiError {
    StrictJson json = new StrictJson(text);
    if (text.length >= 3 && text[0] == (byte) 0xef && text[1] == (byte) 0xbb
        && text[2] == (byte) 0xbf) { // a byte-order mark
      json.at = 3;
    }
    Object value = json.value(0);
    json.skipSpace();
    if (json.at < text.length) {
      throw json.wrong("something follows the value");
    }
    return value;
  }

  private ApiError wrong(String what) {
    return new ApiError(
        400, "invalid_json", null, "the body is no JSON: " + what + " (byte " + at + ")");
  }

  private void skipSpace() {
    while (at < text.length
        && (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' || text[at] == '\t')) {
      at++;
    }
  }

  /** Returns the next byte after white space, without passing it; 0 at the end. */
  private int peek() {
    skipSpace();
    return at < text.length ? text[at] : 0;
  }

  private Object value(int depth) throws ApiError {
    if (depth > DEPTH_LIMIT) {
      throw wrong("nested too deeply");
    }
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return string();
      case 't':
        return word("true", Boolean.TRUE);
      case 'f':
        return word("false", Boolean.FALSE);
      case 'n':
        return word("null", null);
      default:
        return number();
    }
  }

  private Map<String, Object> object(int depth) throws ApiError {
    Map<String, Object> object = new LinkedHashMap<>();
    at++;
    if (peek() == '}') {
      at++;
      return object;
    }
    while (true) {
      if (peek() != '"') {
        throw wrong("expected a key");
      }
      String key = string();
      if (object.containsKey(key)) {
        throw wrong("the duplicate key " + Shown.of(key));
      }
      if (peek() != ':') {
        throw wrong("expected ':'");
      }
      at++;
      object.put(key, value(depth + 1));
      if (isLast('}')) {
        return object;
      }
    }
  }

  private List<Object> array(int depth) throws ApiError {
    List<Object> array = new ArrayList<>();
    at++;
    if (peek() == ']') {
      at++;
      return array;
    }
    while (true) {
      array.add(value(depth + 1));
      if (isLast(']')) {
        return array;
      }
    }
  }

  /** Passes a comma, or the end of an object or array; returns whether it was the end. */
  private boolean isLast(char end) throws ApiError {
    int next = peek();
    if (next != ',' && next != end) {
      throw wrong("expected ',' or '" + end + "'");
    }
    at++;
    return next == end;
  }

  private Object word(String word, Object value) throws ApiError {
    for (int i = 0; i < word.length(); i++, at++) {
      if (at >= text.length || text[at] != word.charAt(i)) {
        throw wrong("expected " + word);
      }
    }
    return value;
  }

  private Object number() throws ApiError {
    int start = at;
    while (at < text.length && "+-.0123456789eE".indexOf(text[at]) >= 0) {
      at++;
    }
    String number = new String(text, start, at - start, StandardCharsets.US_ASCII);
    if (number.length() > DIGITS_LIMIT) {
      throw wrong("a number of " + number.length() + " digits is out of range");
    }
    if (number.matches("-?(0|[1-9][0-9]*)")) {
      return new BigInteger(number);
    }
    if (!number.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")) {
      throw wrong("expected a value");
    }
    double value = Double.parseDouble(number);
    if (Double.isInfinite(value)) {
      throw wrong("the number " + number + " is out of range");
    }
    return value;
  }

  private String string() throws ApiError {
    int start = ++at;
    boolean isPlain = true;
    while (at < text.length && text[at] != '"') {
      int c = text[at];
      if (c >= 0 && c < ' ') {
        throw wrong("a control character in a string");
      }
      isPlain &= c >= 0 && c != '\\';
      at += c == '\\' ? 2 : 1;
    }
    if (at >= text.length) {
      throw wrong("a string without an end");
    }
    int end = at++;
    if (isPlain) { // a picture's Base64: no copy in between
      return new String(text, start, end - start, StandardCharsets.ISO_8859_1);
    }
    return unescaped(decoded(start, end));
  }

  private CharBuffer decoded(int start, int end) throws ApiError {
    try {
      return StandardCharsets.UTF_8
          .newDecoder()
          .onMalformedInput(CodingErrorAction.REPORT)
          .decode(ByteBuffer.wrap(text, start, end - start));
    } catch (CharacterCodingException e) {
      throw wrong("not UTF-8");
    }
  }

  private String unescaped(CharBuffer raw) throws ApiError {
    StringBuilder found = new StringBuilder(raw.length());
    for (int i = 0; i < raw.length(); i++) {
      char c = raw.charAt(i);
      if (c != '\\') {
        found.append(c);
        continue;
      }
      c = raw.charAt(++i); // the string would not have ended before it
      int place = "\"\\/bfnrt".indexOf(c);
      if (place >= 0) {
        found.append("\"\\/\b\f\n\r\t".charAt(place));
      } else if (c == 'u' && i + 4 < raw.length()) {
        String digits = raw.subSequence(i + 1, i + 5).toString();
        if (!digits.matches("[0-9a-fA-F]{4}")) {
          throw wrong("an invalid escape in a string");
        }
        found.append((char) Integer.parseInt(digits, 16));
        i += 4;
      } else {
        throw wrong("an invalid escape in a string");
      }
    }
    return found.toString();
  }
}
