package org.minicpmv.core;

import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.security.MessageDigest;
import org.json.JSONException;
import org.json.JSONObject;

/**
 * Weights that are used where they are: in a file of another app, which the user chose.
 *
 * <p>A record says which file, and how it was when its hash was right. The file is others' to
 * change, so it is hashed before each use that follows a change.
 */
final class LentWeights {
  private static final String RECORD = "weights.lent.json";
  private static final String ADDRESS = "address";
  private static final String NAME = "name";
  private static final String VERIFIED = "verified"; // how the file was, and which weights it had

  private final File record;
  private final long size;
  private final String sha256;

  /** The weights to use have this size and hash. */
  LentWeights(File folder, long size, String sha256) {
    record = new File(folder, RECORD);
    this.size = size;
    this.sha256 = sha256;
  }

  /** Returns the address of the file that the user chose; null: none. */
  String address() {
    return Json.text(record(), ADDRESS);
  }

  /** Returns the name of that file; null: none. */
  String name() {
    return Json.text(record(), NAME);
  }

  /** Makes a file the chosen one. It must have been verified. */
  void choose(LentFile file) throws EngineException {
    try {
      restore(
          Json.object(
              ADDRESS, file.address(), NAME, file.name(), VERIFIED, mark(file)));
    } catch (IOException e) {
      throw unreadable(file, e);
    }
  }

  /** Chooses as an earlier {@link #record} says. */
  void restore(JSONObject earlier) throws EngineException {
    try {
      FileTools.write(record, earlier.toString());
    } catch (IOException e) {
      throw FileTools.failure(EngineException.FILE_ERROR, "the choice cannot be kept", e);
    }
  }

  /** Forgets the chosen file. */
  void forget() {
    record.delete();
  }

  /**
   * Checks the chosen file, unless it was right before and has not changed since.
   *
   * @throws EngineException `wrong_weights`, `damaged_weights`
   */
  void check(LentFile file, Progress progress, CancelToken cancel) throws EngineException {
    requireSize(file);
    String verified = Json.text(record(), VERIFIED);
    try {
      if (!mark(file).equals(verified)) {
        verify(file, progress, cancel);
        choose(file);
      }
    } catch (IOException e) {
      throw unreadable(file, e);
    }
  }

  /** Checks a file's size and SHA-256. */
  void verify(LentFile file, Progress progress, CancelToken cancel) throws EngineException {
    requireSize(file);
    MessageDigest digest = Hashing.sha256();
    try (InputStream source = file.read()) {
      Hashing.read(source, size, digest, progress, cancel);
    } catch (EOFException e) { // cut off meanwhile
      throw new EngineException(
          EngineException.WRONG_WEIGHTS, file.name() + ": " + e.getMessage(), e);
    } catch (IOException e) {
      throw unreadable(file, e);
    }
    String found = Hashing.hex(digest);
    if (!found.equals(sha256)) {
      throw new EngineException(
          EngineException.DAMAGED_WEIGHTS,
          file.name() + ": its SHA-256 is " + found + "; the bundle says " + sha256);
    }
  }

  private void requireSize(LentFile file) throws EngineException {
    if (file.size() != size) {
      throw new EngineException(
          EngineException.WRONG_WEIGHTS,
          file.name() + " has " + file.size() + " bytes; the app needs " + size);
    }
  }

  private static EngineException unreadable(LentFile file, IOException cause) {
    return new EngineException(
        EngineException.WEIGHTS_GONE,
        file.name() + " cannot be read: " + cause.getMessage(),
        cause);
  }

  private String mark(LentFile file) throws IOException {
    return sha256 + " " + file.stamp();
  }

  /** Returns what is kept of the choice; an empty object: nothing is chosen. */
  JSONObject record() {
    try {
      return Json.parse(FileTools.read(record));
    } catch (IOException | JSONException e) {
      return new JSONObject();
    }
  }
}
