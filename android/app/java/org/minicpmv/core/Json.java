package org.minicpmv.core;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;
import org.json.JSONTokener;

/** Helpers for org.json, without checked exceptions that cannot occur. */
public final class Json {
  private Json() {}

  /** Builds an object from alternating names and values; null values are left out. */
  public static JSONObject object(Object... pairs) {
    JSONObject object = new JSONObject();
    for (int i = 0; i < pairs.length; i += 2) {
      put(object, (String) pairs[i], pairs[i + 1]);
    }
    return object;
  }

  /** Sets a value; null removes it. */
  public static void put(JSONObject object, String name, Object value) {
    try {
      object.put(name, value);
    } catch (JSONException e) {
      throw new IllegalArgumentException(name + ": not a JSON value: " + value, e);
    }
  }

  /** Returns a string, or null if there is none of this name. */
  public static String text(JSONObject object, String name) {
    Object value = object.opt(name);
    return value instanceof String ? (String) value : null;
  }

  /**
   * Parses exactly one object.
   *
   * @throws JSONException if the text is anything else
   */
  public static JSONObject parse(String text) throws JSONException {
    JSONTokener tokener = new JSONTokener(text);
    Object value;
    try {
      value = tokener.nextValue();
    } catch (StackOverflowError e) {
      throw new JSONException("nested too deeply");
    }
    if (!(value instanceof JSONObject)) {
      throw new JSONException("not an object");
    }
    if (tokener.nextClean() != 0) {
      throw new JSONException("something follows the object");
    }
    return (JSONObject) value;
  }

  /** Whether a text can be encoded as UTF-8: half of a UTF-16 pair cannot. */
  public static boolean isUnicode(String text) {
    return StandardCharsets.UTF_8.newEncoder().canEncode(text);
  }

  /** Returns a text that can be saved, or throws. */
  static String unicode(String text) throws EngineException {
    if (!isUnicode(text)) {
      throw new EngineException(
          EngineException.INVALID_TEXT, "the text contains half of a UTF-16 pair; remove it");
    }
    return text;
  }

  /** Returns the objects in an array; other values are skipped. */
  public static List<JSONObject> objects(JSONArray array) {
    List<JSONObject> objects = new ArrayList<>();
    for (int i = 0; array != null && i < array.length(); i++) {
      JSONObject object = array.optJSONObject(i);
      if (object != null) {
        objects.add(object);
      }
    }
    return objects;
  }

  /**
   * Serializes an object for use in a script. JSON allows two line separators that end a line in
   * JavaScript before ES2019, which old WebViews run.
   */
  public static String forScript(JSONObject object) {
    return object.toString().replace("\u2028", "\\u2028").replace("\u2029", "\\u2029");
  }
}
