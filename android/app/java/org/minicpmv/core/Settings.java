package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import org.json.JSONException;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Field;

/** The user's settings, with defaults from the bundle. */
public final class Settings {
  private static final int MAX_NEW_TOKENS = 1024; // the default; phones are slow
  private static final int MAX_SLICES = 4; // the default, as in `runtime/web/settings.py`
  private static final String RANGES = "setting_ranges.json";
  private static final List<String> SWITCHES = Arrays.asList("do_sample", "show_speed");
  private static final List<String> LANGUAGES = Arrays.asList("system", "en", "zh");
  private static final List<String> THEMES = Arrays.asList("system", "light", "dark");

  private final File file;
  private final JSONObject ranges;
  private final JSONObject defaults;
  private JSONObject chosen = new JSONObject();

  /**
   * @param file where the user's choices are saved
   * @param given the bundle's defaults, see {@link BundleFiles#defaults}
   * @param ranges the numbers' ranges, see {@link #readRanges}
   */
  public Settings(File file, JSONObject given, JSONObject ranges, Log log) {
    this.file = file;
    this.ranges = ranges;
    JSONObject set = given.optJSONObject("settings");
    JSONObject known = set == null ? null : set.optJSONObject("sample");
    JSONObject sample = known == null ? new JSONObject() : known;
    defaults =
        Json.object(
            "do_sample", sample.optBoolean("do_sample", true),
            "temperature", sample.optDouble("temperature", 0.7),
            "top_p", sample.optDouble("top_p", 0.8),
            "top_k", sample.optInt("top_k", 100),
            "repetition_penalty", sample.optDouble("repetition_penalty", 1.0),
            "max_new_tokens", MAX_NEW_TOKENS,
            "window", given.optInt("window", 1024),
            "max_slices", MAX_SLICES,
            "threads", 0,
            "show_speed", false,
            "theme", "system",
            "language", "system");
    try {
      JSONObject kept = file.exists() ? Json.parse(FileTools.read(file)) : new JSONObject();
      chosen = valid(kept);
    } catch (IOException | JSONException e) {
      log.add("settings cannot be read, so the defaults are used: " + e.getMessage());
    }
  }

  /** Reads the numbers' ranges: `min`, `max` and `step`; a step of 1 means integers. */
  public static JSONObject readRanges(Host host) throws EngineException {
    try (InputStream source = host.configFile(RANGES)) {
      return new JSONObject(new String(FileTools.read(source), StandardCharsets.UTF_8));
    } catch (IOException | JSONException e) {
      throw new EngineException(
          EngineException.INVALID_BUNDLE, "the app's file " + RANGES + " is damaged", e);
    }
  }

  /** Merges choices into the saved ones; values out of range are ignored. */
  public synchronized void choose(JSONObject choices) throws EngineException {
    JSONObject valid = valid(choices);
    for (Iterator<String> names = valid.keys(); names.hasNext(); ) {
      String name = names.next();
      Json.put(chosen, name, valid.opt(name));
    }
    save();
  }

  /** Forgets all choices. */
  public synchronized void reset() throws EngineException {
    chosen = new JSONObject();
    save();
  }

  /** Returns all settings. */
  public synchronized JSONObject all() {
    JSONObject all = new JSONObject();
    for (Iterator<String> names = defaults.keys(); names.hasNext(); ) {
      String name = names.next();
      Json.put(all, name, chosen.has(name) ? chosen.opt(name) : defaults.opt(name));
    }
    return all;
  }

  /** Returns the numbers' ranges. */
  public JSONObject ranges() {
    return ranges;
  }

  public int window() {
    return all().optInt("window");
  }

  public int threads() {
    return all().optInt("threads");
  }

  /** Returns the most slices to cut a picture into, for models that can. */
  public int maxSlices() {
    return all().optInt("max_slices");
  }

  public String language() {
    return all().optString("language");
  }

  /** Returns `system`, `light` or `dark`. */
  public String theme() {
    return all().optString("theme");
  }

  /** Returns the fields of a chat request. */
  public JSONObject sampling() {
    JSONObject all = all();
    JSONObject fields =
        Json.object(
            Field.MAX_NEW_TOKENS, all.optInt("max_new_tokens"),
            Field.REPETITION_PENALTY, all.optDouble("repetition_penalty"),
            Field.DO_SAMPLE, all.optBoolean("do_sample"));
    if (all.optBoolean("do_sample")) {
      Json.put(fields, Field.TEMPERATURE, all.optDouble("temperature"));
      Json.put(fields, Field.TOP_P, all.optDouble("top_p"));
      if (all.optInt("top_k") > 0) {
        Json.put(fields, Field.TOP_K, all.optInt("top_k"));
      }
    }
    return fields;
  }

  private void save() throws EngineException {
    try {
      FileTools.write(file, chosen.toString());
    } catch (IOException e) {
      throw FileTools.failure(EngineException.FILE_ERROR, "the settings could not be saved", e);
    }
  }

  private JSONObject valid(JSONObject choices) {
    JSONObject valid = new JSONObject();
    for (String name : SWITCHES) {
      if (choices.opt(name) instanceof Boolean) {
        Json.put(valid, name, choices.opt(name));
      }
    }
    takeWord(valid, choices, "language", LANGUAGES);
    takeWord(valid, choices, "theme", THEMES);
    for (Iterator<String> names = ranges.keys(); names.hasNext(); ) {
      String name = names.next();
      take(valid, choices, name, ranges.optJSONObject(name));
    }
    return valid;
  }

  private static void takeWord(
      JSONObject valid, JSONObject choices, String name, List<String> words) {
    String word = Json.text(choices, name);
    if (words.contains(word)) {
      Json.put(valid, name, word);
    }
  }

  private static void take(JSONObject valid, JSONObject choices, String name, JSONObject range) {
    double value = choices.optDouble(name, Double.NaN);
    boolean isInside = value >= range.optDouble("min") && value <= range.optDouble("max");
    boolean isWhole = range.optDouble("step") == 1;
    if (isInside && (!isWhole || value == Math.rint(value))) {
      Json.put(valid, name, isWhole ? (Object) (int) value : (Object) value);
    }
  }
}
