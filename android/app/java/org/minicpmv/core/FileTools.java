package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;

/** Files that appear whole or not at all. */
final class FileTools {
  private FileTools() {}

  static void write(File file, String text) throws IOException {
    File partial = new File(file.getPath() + ".partial");
    Files.write(partial.toPath(), text.getBytes(StandardCharsets.UTF_8));
    move(partial, file);
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
