package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONObject;

/**
 * The weights: one file, in the app's private folder or in one of the folders that a PC pushes to.
 *
 * <p>The engine reads a bundle's folder; weights stored elsewhere are linked into it.
 */
public final class Weights {
  public static final String NAME = "weights.safetensors";
  public static final String PARTIAL = NAME + ".partial";
  private static final String VERIFIED = "weights.verified";
  private static final int BLOCK = 1 << 20;
  private static final long SPARE = 64L << 20; // bytes of storage that stay free
  private static final long PROGRESS_BYTES = 8L << 20; // between two progress reports

  private final File folder;
  private final List<File> outside;
  private final long size;
  private final String sha256;

  /**
   * @param folder the bundle's folder
   * @param outside other files that may be the weights
   * @param record the manifest's entry: `size`, `sha256`
   */
  public Weights(File folder, List<File> outside, JSONObject record) {
    this.folder = folder;
    this.outside = new ArrayList<>(outside);
    this.size = record.optLong("size");
    this.sha256 = record.optString("sha256");
  }

  public long size() {
    return size;
  }

  /** Finds the weights and makes sure that the bundle's folder has them. */
  public synchronized File find() throws EngineException {
    File own = new File(folder, NAME);
    try {
      Files.deleteIfExists(new File(folder, PARTIAL).toPath()); // of an import that was killed
      boolean isLink = Files.isSymbolicLink(own.toPath());
      if (!isLink && own.isFile() && own.length() == size) {
        return own;
      }
      for (File file : outside) {
        if (file.isFile() && file.canRead() && file.length() == size) {
          if (!isLink || !Files.readSymbolicLink(own.toPath()).equals(file.toPath())) {
            Files.deleteIfExists(own.toPath());
            Files.createSymbolicLink(own.toPath(), file.toPath());
          }
          return file;
        }
      }
      if (isLink) {
        Files.delete(own.toPath()); // its target is gone or has another size
      }
    } catch (IOException e) {
      throw new EngineException(EngineException.FILE_ERROR, String.valueOf(e.getMessage()), e);
    }
    List<File> candidates = new ArrayList<>(outside);
    candidates.add(0, own);
    for (File file : candidates) {
      if (file.isFile()) {
        throw new EngineException(
            EngineException.WRONG_WEIGHTS,
            file + " has " + file.length() + " bytes; the app needs " + size);
      }
    }
    throw new EngineException(EngineException.NO_WEIGHTS, "no weights yet");
  }

  /**
   * Checks that an import can succeed: the file has the right size and a copy fits. Deletes weights
   * of another bundle if their space is needed; weights that this bundle can use stay.
   *
   * @param length the file's size; -1 if unknown
   */
  public void requireSpace(long length) throws EngineException {
    requireSize(length < 0 ? size : length);
    File own = new File(folder, NAME);
    boolean isOther = own.isFile() && !Files.isSymbolicLink(own.toPath()) && own.length() != size;
    long free = folder.getUsableSpace();
    long other = isOther ? own.length() : 0;
    if (free + other < size + SPARE) {
      long missing = size + SPARE - free - other;
      throw new EngineException(
          EngineException.NO_SPACE,
          (free >> 20) + " MiB are free; a copy of the weights needs "
              + ((missing >> 20) + 1) + " MiB more");
    }
    if (free < size + SPARE) {
      own.delete();
    }
  }

  /** Copies weights into the app; a cancelled or wrong copy is deleted. */
  public void importFrom(InputStream source, long length, Progress progress, CancelToken cancel)
      throws EngineException {
    requireSpace(length);
    File partial = new File(folder, PARTIAL);
    File own = new File(folder, NAME);
    try {
      String found;
      try (OutputStream target = Files.newOutputStream(partial.toPath())) {
        found = copy(source, target, "import", progress, cancel);
      }
      requireSize(partial.length());
      requireHash(found);
      FileTools.move(partial, own);
      markVerified(own);
    } catch (IOException e) {
      throw FileTools.failure(
          EngineException.FILE_ERROR, "the weights could not be copied", e);
    } finally {
      partial.delete();
    }
  }

  /** Whether a file found by {@link #find} was verified before and has not changed since. */
  public boolean isVerified(File file) {
    try {
      return FileTools.read(new File(folder, VERIFIED)).equals(mark(file));
    } catch (IOException e) {
      return false; // never hashed
    }
  }

  /** Checks the weights' SHA-256. */
  public void verify(File file, Progress progress, CancelToken cancel) throws EngineException {
    try (InputStream source = Files.newInputStream(file.toPath())) {
      requireHash(copy(source, null, "verify", progress, cancel));
    } catch (IOException e) {
      throw new EngineException(
          EngineException.DAMAGED_WEIGHTS, file + " cannot be read: " + e.getMessage(), e);
    }
    markVerified(file);
  }

  /** Copies the source to the target, or only reads it if there is none; returns its SHA-256. */
  private String copy(
      InputStream source, OutputStream target, String stage, Progress progress, CancelToken cancel)
      throws IOException, EngineException {
    MessageDigest digest;
    try {
      digest = MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java has SHA-256", e);
    }
    byte[] block = new byte[BLOCK];
    long done = 0;
    long reported = 0;
    progress.onProgress(stage, 0, size);
    for (int count; (count = source.read(block)) >= 0; ) {
      cancel.check();
      digest.update(block, 0, count);
      if (target != null) {
        target.write(block, 0, count);
      }
      done += count;
      if (done > size) {
        throw new EngineException(
            EngineException.WRONG_WEIGHTS, "the file is longer than the " + size + " bytes needed");
      }
      if (done - reported >= PROGRESS_BYTES || done == size) {
        progress.onProgress(stage, done, size);
        reported = done;
      }
    }
    return hex(digest.digest());
  }

  private void requireSize(long found) throws EngineException {
    if (found != size) {
      throw new EngineException(
          EngineException.WRONG_WEIGHTS,
          "the file has " + found + " bytes; the app needs " + size);
    }
  }

  private void requireHash(String found) throws EngineException {
    if (!found.equals(sha256)) {
      throw new EngineException(
          EngineException.DAMAGED_WEIGHTS,
          "the weights' SHA-256 is " + found + "; the bundle says " + sha256);
    }
  }

  /** Remembers the result; if that fails, the weights are hashed again next time. */
  private synchronized void markVerified(File file) {
    File mark = new File(folder, VERIFIED);
    try {
      FileTools.write(mark, mark(file));
    } catch (IOException e) {
      mark.delete();
    }
  }

  private String mark(File file) throws IOException {
    Path path = file.toPath();
    return sha256 + " " + file.length() + " " + Files.getLastModifiedTime(path).toMillis();
  }

  private static String hex(byte[] bytes) {
    StringBuilder text = new StringBuilder();
    for (byte b : bytes) {
      text.append(Character.forDigit((b >> 4) & 15, 16)).append(Character.forDigit(b & 15, 16));
    }
    return text.toString();
  }
}
