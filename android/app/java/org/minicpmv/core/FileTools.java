package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;

/** Files that appear whole or not at all. */
final class FileTools {
  private static final String[] FULL = {"ENOSPC", "No space left", "EDQUOT", "quota exceeded"};

  private FileTools() {}

  static void write(File file, String text) throws IOException {
    write(file, text.getBytes(StandardCharsets.UTF_8));
  }

  static void write(File file, byte[] content) throws IOException {
    File partial = new File(file.getPath() + ".partial");
    try {
      Files.write(partial.toPath(), content);
      move(partial, file);
    } finally {
      partial.delete(); // the full storage that stopped it is not made fuller
    }
  }

  /**
   * Returns what the page is told of a failure: that storage or memory is full, or something else.
   *
   * @param otherCode of something else
   * @param what failed; empty if the cause says enough
   */
  static EngineException failure(String otherCode, String what, Throwable cause) {
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
    return new EngineException(code, begin + cause.getMessage(), cause);
  }

  static String read(File file) throws IOException {
    return new String(Files.readAllBytes(file.toPath()), StandardCharsets.UTF_8);
  }

  static void move(File from, File to) throws IOException {
    Files.move(
        from.toPath(),
        to.toPath(),
        StandardCopyOption.REPLACE_EXISTING,
        StandardCopyOption.ATOMIC_MOVE);
  }

  static void makeFolder(File folder) throws IOException {
    Files.createDirectories(folder.toPath());
  }

  /** Returns a folder's files; none if it is no folder. */
  static File[] list(File folder) {
    File[] files = folder.listFiles();
    return files == null ? new File[0] : files;
  }
}
