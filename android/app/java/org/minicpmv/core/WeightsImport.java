package org.minicpmv.core;

import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import org.json.JSONException;
import org.json.JSONObject;

/**
 * A copy of the weights that continues after a break: the source failed, or the app was killed.
 *
 * <p>A record beside the partial copy says where the bytes came from, how many of them were on the
 * disk for certain, and their SHA-256.
 */
final class WeightsImport {
  private static final String RECORD = Weights.PARTIAL + ".json";
  private static final int BLOCK = 1 << 20;
  private static final long BETWEEN_RECORDS = 64L << 20; // bytes
  private static final long BETWEEN_REPORTS = 8L << 20; // bytes, to the page

  private final File partial;
  private final File record;
  private final long size;
  private final String sha256;

  /** The weights to import have this size and hash. */
  WeightsImport(File folder, long size, String sha256) {
    this.partial = new File(folder, Weights.PARTIAL);
    this.record = new File(folder, RECORD);
    this.size = size;
    this.sha256 = sha256;
  }

  /** Returns the size of an interrupted copy of these weights; 0 if there is none. */
  long copied() {
    long bytes = kept().optLong("bytes");
    return bytes <= partial.length() ? bytes : 0;
  }

  /** Returns the storage that the partial copy takes. */
  long storage() {
    return partial.length();
  }

  void discard() {
    partial.delete();
    record.delete();
  }

  /**
   * Copies the source, or the rest of it after a break.
   *
   * @param source is read to its end
   * @param name identifies the source; another one is copied from its beginning
   * @return the SHA-256 of the whole copy
   * @throws EOFException if the source ended before the weights' size
   */
  String copy(InputStream source, String name, Progress progress, CancelToken cancel)
      throws IOException, EngineException {
    MessageDigest digest = Hashing.sha256();
    long done = resume(name, digest, progress, cancel);
    try (FileChannel target = open(done)) {
      skip(source, done);
      long recorded = done;
      long reported = done;
      byte[] block = new byte[BLOCK];
      progress.onProgress("import", done, size);
      try {
        for (int count; (count = source.read(block)) >= 0; ) {
          cancel.check();
          if (done + count > size) {
            throw new EngineException(
                EngineException.WRONG_WEIGHTS,
                "the file is longer than the " + size + " bytes needed");
          }
          write(target, block, count);
          digest.update(block, 0, count);
          done += count;
          if (done - recorded >= BETWEEN_RECORDS) {
            keep(name, target, done, digest);
            recorded = done;
          }
          if (done - reported >= BETWEEN_REPORTS || done == size) {
            progress.onProgress("import", done, size);
            reported = done;
          }
        }
        if (done < size) {
          throw new EOFException("the file ended after " + done + " of " + size + " bytes");
        }
      } catch (IOException e) {
        keep(name, target, done, digest);
        throw e;
      }
    }
    return Hashing.hex(digest);
  }

  /** Takes the bytes of an interrupted copy into the digest; returns how many there are. */
  private long resume(String name, MessageDigest digest, Progress progress, CancelToken cancel)
      throws IOException, EngineException {
    JSONObject kept = kept();
    long bytes = copied();
    if (bytes == 0 || !name.equals(Json.text(kept, "source"))) {
      return 0;
    }
    try (InputStream copy = Files.newInputStream(partial.toPath())) {
      Hashing.read(copy, bytes, digest, progress, cancel);
    }
    if (Hashing.hex(Hashing.copy(digest)).equals(Json.text(kept, "sha256"))) {
      return bytes;
    }
    digest.reset(); // what is on the disk is not what was written
    return 0;
  }

  private FileChannel open(long done) throws IOException {
    if (done == 0) {
      return FileChannel.open(
          partial.toPath(),
          StandardOpenOption.CREATE,
          StandardOpenOption.WRITE,
          StandardOpenOption.TRUNCATE_EXISTING);
    }
    FileChannel target = FileChannel.open(partial.toPath(), StandardOpenOption.WRITE);
    return target.truncate(done).position(done);
  }

  private static void write(FileChannel target, byte[] block, int count) throws IOException {
    ByteBuffer bytes = ByteBuffer.wrap(block, 0, count);
    while (bytes.hasRemaining()) {
      target.write(bytes);
    }
  }

  private static void skip(InputStream source, long count) throws IOException {
    byte[] block = new byte[BLOCK];
    for (long rest = count; rest > 0; ) {
      long skipped = source.skip(rest); // a file's stream seeks
      if (skipped <= 0) {
        skipped = source.read(block, 0, (int) Math.min(block.length, rest));
      }
      if (skipped < 0) {
        throw new EOFException("the file ended before the place where the copy continues");
      }
      rest -= skipped;
    }
  }

  /** Records what is copied; if that fails, the next import copies everything. */
  private void keep(String name, FileChannel target, long done, MessageDigest digest) {
    try {
      target.force(false);
      String hash = Hashing.hex(Hashing.copy(digest));
      JSONObject kept =
          Json.object("weights", sha256, "source", name, "bytes", done, "sha256", hash);
      FileTools.write(record, kept.toString());
    } catch (IOException e) {
      record.delete();
    }
  }

  /** Returns the record of a copy of these weights; an empty object if there is none. */
  private JSONObject kept() {
    try {
      JSONObject kept = Json.parse(FileTools.read(record));
      return sha256.equals(Json.text(kept, "weights")) ? kept : new JSONObject();
    } catch (IOException | JSONException e) {
      return new JSONObject();
    }
  }
}
