package org.minicpmv.core;

import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** SHA-256 of large files. */
final class Hashing {
  private static final int BLOCK = 1 << 20;
  private static final long BETWEEN_REPORTS = 8L << 20; // bytes

  private Hashing() {}

  static MessageDigest sha256() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java has SHA-256", e);
    }
  }

  /** Returns a digest with the same state. */
  static MessageDigest copy(MessageDigest digest) {
    try {
      return (MessageDigest) digest.clone();
    } catch (CloneNotSupportedException e) {
      throw new IllegalStateException("Android's and Java's SHA-256 can be copied", e);
    }
  }

  /**
   * Hashes the first bytes of a stream.
   *
   * @throws EOFException if it has fewer
   */
  static void read(
      InputStream source, long size, MessageDigest digest, Progress progress, CancelToken cancel)
      throws IOException, EngineException {
    byte[] block = new byte[BLOCK];
    long reported = 0;
    progress.onProgress("verify", 0, size);
    for (long done = 0; done < size; ) {
      cancel.check();
      int count = source.read(block, 0, (int) Math.min(block.length, size - done));
      if (count < 0) {
        throw new EOFException("the file ended after " + done + " of " + size + " bytes");
      }
      digest.update(block, 0, count);
      done += count;
      if (done - reported >= BETWEEN_REPORTS || done == size) {
        progress.onProgress("verify", done, size);
        reported = done;
      }
    }
  }

  /** Ends a digest; returns it in hexadecimal. */
  static String hex(MessageDigest digest) {
    StringBuilder text = new StringBuilder();
    for (byte b : digest.digest()) {
      text.append(Character.forDigit((b >> 4) & 15, 16)).append(Character.forDigit(b & 15, 16));
    }
    return text.toString();
  }
}
