package org.minicpmv.core;

import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import org.json.JSONException;
import org.json.JSONObject;

/** The bundle's small files: packaged in the app, unpacked into a folder for the engine. */
public final class BundleFiles {
  private static final String MANIFEST = "bundle.json";
  private static final String GENERATION = "generation.json";
  private static final String SETTINGS = "OmniLMMChat"; // a set of generation.json: it samples

  public final File folder;
  public final JSONObject manifest;
  private final JSONObject generation;

  /** Unpacks the files, or updates them after an app update. */
  public BundleFiles(File folder, BundleSource source) throws EngineException {
    this.folder = folder;
    try {
      FileTools.makeFolder(folder);
      byte[] content = content(source, MANIFEST);
      manifest = new JSONObject(new String(content, StandardCharsets.UTF_8));
      for (String name : carried(manifest)) {
        bringUpToDate(name, content(source, name));
      }
      bringUpToDate(MANIFEST, content);
      generation = new JSONObject(FileTools.read(new File(folder, GENERATION)));
    } catch (FileNotFoundException e) {
      throw new EngineException(
          EngineException.INVALID_BUNDLE, "the app lacks a file: " + e.getMessage(), e);
    } catch (IOException e) {
      throw FileTools.failure(EngineException.FILE_ERROR, "the app cannot unpack its files", e);
    } catch (JSONException e) {
      throw new EngineException(
          EngineException.INVALID_BUNDLE, "the app's own files are damaged", e);
    }
  }

  /** Returns the manifest's entry for a file; an empty object if there is none. */
  public JSONObject record(String name) {
    JSONObject files = manifest.optJSONObject("files");
    JSONObject record = files == null ? null : files.optJSONObject(name);
    return record == null ? new JSONObject() : record;
  }

  /**
   * Returns how the model generates unless told otherwise: `window`, and a set of settings as in
   * generation.json. Models that cut pictures into slices have defaults of their own there, as
   * `runtime/inputs/defaults.py` knows.
   */
  public JSONObject defaults() {
    JSONObject model = manifest.optJSONObject("model");
    boolean cutsPictures = model != null && model.opt("slice_mode") instanceof Boolean;
    JSONObject slices = cutsPictures ? generation.optJSONObject("slices") : null;
    JSONObject sets = generation.optJSONObject("sets");
    String name = slices == null ? SETTINGS : slices.optString("settings");
    return Json.object(
        "window", (slices == null ? generation : slices).opt("window"),
        "settings", sets == null ? null : sets.opt(name));
  }

  /** Returns the facts about the bundle that the page shows. */
  public JSONObject about() {
    return Json.object(
        "architecture", manifest.opt("architecture"),
        "source", manifest.opt("source"),
        "quantization", manifest.opt("quantization"));
  }

  /** Lists the files that are packaged in the app: all but the weights and the engines. */
  private static List<String> carried(JSONObject manifest) {
    List<String> names = new ArrayList<>();
    JSONObject files = manifest.optJSONObject("files");
    if (files == null) {
      return names;
    }
    for (Iterator<String> keys = files.keys(); keys.hasNext(); ) {
      String name = keys.next();
      // Engines are in a subfolder of a bundle, and elsewhere on a phone.
      if (!name.equals(Weights.NAME) && name.indexOf('/') < 0) {
        names.add(name);
      }
    }
    return names;
  }

  private void bringUpToDate(String name, byte[] content) throws IOException {
    File file = new File(folder, name);
    if (!file.exists() || !Arrays.equals(Files.readAllBytes(file.toPath()), content)) {
      FileTools.write(file, content);
    }
  }

  private static byte[] content(BundleSource source, String name) throws IOException {
    try (InputStream file = source.bundleFile(name)) {
      return FileTools.read(file);
    }
  }
}
