package org.minicpmv.core;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Arrays;
import org.json.JSONException;
import org.json.JSONObject;

/** The bundle's small files, which the app carries and the engine reads from a folder. */
public final class BundleFiles {
  private static final String MANIFEST = "bundle.json";
  private static final String GENERATION = "generation.json";
  private static final String TOKENIZER = "tokenizer.model";
  private static final int BLOCK = 1 << 16;

  public final File folder;
  public final JSONObject manifest;
  public final JSONObject generation;

  /** Brings the folder up to date with the app, which may have been updated. */
  public BundleFiles(File folder, Host host) throws EngineException {
    this.folder = folder;
    try {
      FileTools.makeFolder(folder);
      JSONObject[] read = new JSONObject[2];
      for (String name : new String[] {TOKENIZER, GENERATION, MANIFEST}) {
        byte[] content = content(host, name);
        if (content == null) {
          continue;
        }
        File file = new File(folder, name);
        if (!file.exists() || !Arrays.equals(Files.readAllBytes(file.toPath()), content)) {
          Files.write(file.toPath(), content);
        }
        if (name.equals(MANIFEST) || name.equals(GENERATION)) {
          read[name.equals(MANIFEST) ? 0 : 1] =
              new JSONObject(new String(content, StandardCharsets.UTF_8));
        }
      }
      manifest = read[0];
      generation = read[1];
    } catch (IOException e) {
      boolean full = folder.getUsableSpace() < BLOCK;
      throw new EngineException(
          full ? EngineException.NO_SPACE : EngineException.FILE_ERROR,
          String.valueOf(e.getMessage()),
          e);
    } catch (JSONException e) {
      throw new EngineException("invalid_bundle", "the app's own files are damaged", e);
    }
    if (manifest == null || generation == null) {
      throw new EngineException("invalid_bundle", "the app lacks files of its own");
    }
  }

  /** Returns what the manifest says of a file; an empty object if it does not know it. */
  public JSONObject record(String name) {
    JSONObject files = manifest.optJSONObject("files");
    JSONObject record = files == null ? null : files.optJSONObject(name);
    return record == null ? new JSONObject() : record;
  }

  /** Returns what people want to know of the bundle. */
  public JSONObject about() {
    return Json.object(
        "architecture", manifest.opt("architecture"),
        "source", manifest.opt("source"),
        "quantization", manifest.opt("quantization"));
  }

  /** Returns null for a file that the bundle does not have. */
  private static byte[] content(Host host, String name) throws IOException {
    ByteArrayOutputStream content = new ByteArrayOutputStream();
    byte[] block = new byte[BLOCK];
    try (InputStream source = host.bundleFile(name)) {
      for (int count; (count = source.read(block)) >= 0; ) {
        content.write(block, 0, count);
      }
    } catch (FileNotFoundException e) {
      return null;
    }
    return content.toByteArray();
  }
}
