package org.minicpmv.system;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;

/** The app's engine as the system sees it: a child process, which takes signals. */
public final class EngineProcess {
  private final String pid;

  private EngineProcess(String pid) {
    this.pid = pid;
  }

  /** Returns the running engine. */
  public static EngineProcess find() throws IOException {
    List<String> found = all();
    if (found.size() != 1) {
      throw new AssertionError("engines: " + found);
    }
    return new EngineProcess(found.get(0));
  }

  /** Whether no engine is running. */
  public static boolean isNone() throws IOException {
    return all().isEmpty();
  }

  /** Sends a signal: STOP keeps an answer from going on, CONT lets it, KILL ends the engine. */
  public void signal(String name) throws Exception {
    if (new ProcessBuilder("kill", "-" + name, pid).start().waitFor() != 0) {
      throw new AssertionError("no process " + pid);
    }
  }

  private static List<String> all() throws IOException {
    List<String> found = new ArrayList<>();
    for (File thread : new File("/proc/self/task").listFiles()) {
      File children = new File(thread, "children");
      if (children.exists()) {
        String text = new String(Files.readAllBytes(children.toPath()), StandardCharsets.UTF_8);
        for (String child : text.trim().split(" ")) {
          if (!child.isEmpty() && !isDead(child)) {
            found.add(child);
          }
        }
      }
    }
    return found;
  }

  /** Whether a process has ended; its entry may stay a moment. */
  private static boolean isDead(String child) throws IOException {
    File status = new File("/proc/" + child + "/stat");
    if (!status.exists()) {
      return true;
    }
    String text = new String(Files.readAllBytes(status.toPath()), StandardCharsets.UTF_8);
    return text.charAt(text.lastIndexOf(')') + 2) == 'Z';
  }
}
