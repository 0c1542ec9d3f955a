package org.minicpmv.system;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** The app's engine as the system sees it: a child process, which takes signals. */
public final class EngineProcess {
  private static final long SECONDS = 60; // until a wait fails

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

  /**
   * Sends a signal: STOP keeps an answer from going on, CONT lets it, KILL ends the engine.
   *
   * <p>Waits until a STOP holds: the first thread takes it and stops the others; on a busy machine
   * these go on until it runs.
   */
  public void signal(String name) throws Exception {
    if (new ProcessBuilder("kill", "-" + name, pid).start().waitFor() != 0) {
      throw new AssertionError("no process " + pid);
    }
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(SECONDS);
    while (name.equals("STOP") && !isStopped()) {
      if (System.nanoTime() > end) {
        throw new AssertionError("process " + pid + " does not stop");
      }
      Thread.sleep(1);
    }
  }

  private boolean isStopped() throws IOException {
    for (File thread : new File("/proc/" + pid + "/task").listFiles()) {
      try {
        if (state(new File(thread, "stat")) != 'T') {
          return false;
        }
      } catch (NoSuchFileException e) { // it ended meanwhile
        return false;
      }
    }
    return true;
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
    return state(status) == 'Z';
  }

  /** Returns the state in a file of proc(5), a letter. */
  private static char state(File stat) throws IOException {
    String text = new String(Files.readAllBytes(stat.toPath()), StandardCharsets.UTF_8);
    return text.charAt(text.lastIndexOf(')') + 2);
  }
}
