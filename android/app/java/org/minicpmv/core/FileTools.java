package org.minicpmv.core;

import java.io.ByteArrayOutputStream;
import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;

/** Atomic file writes and related helpers. */
public final class FileTools {
  private static final String[] FULL = {"ENOSPC", "No space left", "EDQUOT", "quota exceeded"};

  private static final String PARTIAL = ".partial";
  private static final int BLOCK = 1 << 16;

  private FileTools() {}

  /** Whether a file is the remains of an interrupted write. */
  static boolean isPartial(File file) {
    return file.getName().endsWith(PARTIAL);
  }

  public static void write(File file, String text) throws IOException {
    write(file, text.getBytes(StandardCharsets.UTF_8));
  }

  static void write(File file, byte[] content) throws IOException {
    File partial = new File(file.getPath() + PARTIAL);
    try {
      Files.write(partial.toPath(), content);
      move(partial, file);
    } finally {
      partial.delete(); // after a failure, do not leave it on full storage
    }
  }

  /**
   * Returns the error for a failure: out of storage, out of memory, or `otherCode`.
   *
   * @param otherCode the code if neither storage nor memory is exhausted
   * @param what what failed; empty if the cause says enough
   */
  public static EngineException failure(String otherCode, String what, Throwable cause) {
    String begin = what.isEmpty() ? "" : what + ": ";
    for (Throwable e = cause; e != null; e = e.getCause()) {
      String message = String.valueOf(e.getMessage());
      for (String sign : FULL) {
        if (message.contains(sign)) {
          return new EngineException(EngineException.NO_SPACE, begin + "storage is full", cause);
        }
      }
    }
    boolean isMemory = cause instanceof OutOfMemoryError;
    String code = isMemory ? EngineException.OUT_OF_MEMORY : otherCode;
    String reason = cause.getMessage();
    return new EngineException(
        code, begin + (reason == null ? cause.getClass().getSimpleName() : reason), cause);
  }

  /**
   * Returns a file's text.
   *
   * @throws IOException if it cannot be read, is not a file, or is not UTF-8
   */
  public static String read(File file) throws IOException {
    if (file.exists() && !file.isFile()) { // reading a pipe would block
      throw new IOException(file + ": not a file");
    }
    byte[] content = Files.readAllBytes(file.toPath());
    return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(content)).toString();
  }

  /** Reads a stream to its end. */
  public static byte[] read(InputStream source) throws IOException {
    ByteArrayOutputStream content = new ByteArrayOutputStream();
    byte[] block = new byte[BLOCK];
    for (int count; (count = source.read(block)) >= 0; ) {
      content.write(block, 0, count);
    }
    return content.toByteArray();
  }

  /** Moves a file to its destination. A symbolic link there is kept, and its target replaced. */
  static void move(File from, File to) throws IOException {
    Path place = to.toPath();
    if (Files.isRegularFile(place)) {
      place = place.toRealPath();
    } else if (Files.exists(place, LinkOption.NOFOLLOW_LINKS)) {
      throw new IOException(to + ": not a file, so it is not replaced");
    }
    Files.move(
        from.toPath(),
        place,
        StandardCopyOption.REPLACE_EXISTING,
        StandardCopyOption.ATOMIC_MOVE);
  }

  /** Closes a file that was only read, so that nothing can be lost. */
  static void closeQuietly(Closeable file) {
    try {
      file.close();
    } catch (IOException e) {
      return;
    }
  }

  static void makeFolder(File folder) throws IOException {
    Files.createDirectories(folder.toPath());
  }

  /** Returns a folder's files; none if it is not a folder. */
  static File[] list(File folder) {
    File[] files = folder.listFiles();
    return files == null ? new File[0] : files;
  }
}
