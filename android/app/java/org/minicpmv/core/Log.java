package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.StandardOpenOption;
import java.text.SimpleDateFormat;
import java.util.Date;
import java.util.Locale;

/** A log for bug reports. It never contains chats or pictures. */
public final class Log {
  private static final long LIMIT = 128 << 10; // bytes of each of two files

  private final File file;
  private final File older;

  public Log(File file) {
    this.file = file;
    this.older = new File(file.getPath() + ".old");
  }

  public synchronized void add(String text) {
    String time = new SimpleDateFormat("yyyy-MM-dd HH:mm:ss", Locale.ROOT).format(new Date());
    byte[] line = (time + " " + text + "\n").getBytes(StandardCharsets.UTF_8);
    try {
      if (file.length() > LIMIT) {
        FileTools.move(file, older);
      }
      Files.write(
          file.toPath(), line, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    } catch (IOException e) {
      System.err.println("the log cannot be written: " + e); // a full disk must not stop the app
    }
  }

  /** Returns the whole log. */
  public synchronized String text() {
    StringBuilder text = new StringBuilder();
    for (File part : new File[] {older, file}) {
      try {
        byte[] content = part.exists() ? Files.readAllBytes(part.toPath()) : new byte[0];
        text.append(new String(content, StandardCharsets.UTF_8)); // tolerates a split character
      } catch (IOException e) {
        text.append("(").append(e.getMessage()).append(")\n");
      }
    }
    return text.toString();
  }
}
