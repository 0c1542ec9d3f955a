package org.minicpmv.core;

import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONObject;

/**
 * The weights: one file, in the app's private folder or in one of the folders that a PC pushes to;
 * or else in another app, see {@link LentWeights}.
 *
 * <p>The engine reads a bundle's folder; weights stored elsewhere are linked into it.
 */
public final class Weights {
  public static final String NAME = "weights.safetensors";
  public static final String PARTIAL = NAME + ".partial";
  private static final String VERIFIED = "weights.verified";
  private static final long SPARE = 64L << 20; // bytes of storage that stay free

  private final File folder;
  private final List<File> outside;
  private final long size;
  private final String sha256;
  private final WeightsImport copy;
  final LentWeights lent;

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
    copy = new WeightsImport(folder, size, sha256);
    lent = new LentWeights(folder, size, sha256);
  }

  public long size() {
    return size;
  }

  /** Finds the weights and makes sure that the bundle's folder has them. */
  public synchronized File find() throws EngineException {
    if (copy.copied() == 0) {
      copy.discard(); // of other weights, or from before the first record
    }
    File found = locate();
    if (isVerified(found)) {
      copy.discard(); // nobody needs it any more
    }
    return found;
  }

  private File locate() throws EngineException {
    File own = new File(folder, NAME);
    try {
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
    long needed = size + SPARE - copy.storage(); // what broke off is continued or replaced
    long other = isOther ? own.length() : 0;
    if (free + other < needed) {
      long missing = needed - free - other;
      throw new EngineException(
          EngineException.NO_SPACE,
          (free >> 20) + " MiB are free; a copy of the weights needs "
              + ((missing >> 20) + 1) + " MiB more");
    }
    if (free < needed) {
      own.delete();
    }
  }

  /**
   * Copies weights into the app. A cancelled or wrong copy is deleted; one that broke off stays, and
   * the next import of the same source continues it.
   *
   * @param length the source's size; -1 if unknown
   * @param name identifies the source
   */
  public void importFrom(
      InputStream source, long length, String name, Progress progress, CancelToken cancel)
      throws EngineException {
    requireSpace(length);
    File own = new File(folder, NAME);
    try {
      requireHash(copy.copy(source, name, progress, cancel));
      FileTools.move(new File(folder, PARTIAL), own);
      copy.discard(); // its record
      markVerified(own);
    } catch (EngineException e) {
      copy.discard();
      throw e;
    } catch (EOFException e) {
      if (length < 0) { // then it may be another file
        copy.discard();
        throw new EngineException(EngineException.WRONG_WEIGHTS, e.getMessage(), e);
      }
      throw failure(e);
    } catch (IOException e) {
      throw failure(e);
    }
  }

  /** Deletes copies in the bundle's folder: the weights are used elsewhere. */
  synchronized void discardCopies() {
    copy.discard();
    new File(folder, NAME).delete(); // a file or a link
  }

  /** Returns how many bytes an import that broke off has copied. */
  public long copied() {
    return copy.copied();
  }

  /** Returns the error for a copy that broke off; on full storage, it is deleted. */
  private EngineException failure(IOException cause) {
    EngineException failure =
        FileTools.failure(EngineException.FILE_ERROR, "the weights could not be copied", cause);
    if (failure.code().equals(EngineException.NO_SPACE)) {
      copy.discard();
    }
    return failure;
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
      MessageDigest digest = Hashing.sha256();
      Hashing.read(source, size, digest, progress, cancel);
      requireHash(Hashing.hex(digest));
    } catch (IOException e) {
      throw new EngineException(
          EngineException.DAMAGED_WEIGHTS, file + " cannot be read: " + e.getMessage(), e);
    }
    markVerified(file);
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
}
