package org.minicpmv.core;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.json.JSONException;
import org.json.JSONObject;

/**
 * A running engine: a child process that speaks JSON lines, see runtime/engine/PROTOCOL.md.
 *
 * <p>One thread reads its lines. Requests come one after the other from one thread; only {@link
 * #cancel} and {@link #close} may be called from another.
 */
public final class Engine implements AutoCloseable {
  private static final int PROTOCOL = 1;
  private static final long START_SECONDS = 60;
  private static final long END_SECONDS = 5;
  private static final int CANCEL_ID = 0; // no request's
  private static final String END = ""; // never a line of the engine
  private static final int LAST_WORDS = 2000; // bytes of stderr that are told
  private static final int SIGNALLED = 128; // more than this: ended by a signal
  private static final int SIGILL = 4;
  private static final int SIGABRT = 6;
  private static final int SIGBUS = 7;
  private static final int SIGFPE = 8;
  private static final int SIGKILL = 9;
  private static final int SIGSEGV = 11;
  private static final int SIGSYS = 31;

  /** Hears an answer as it grows, and of work that takes long. */
  public interface Listener extends Progress {
    void onText(String text);
  }

  private final Process process;
  private final OutputStream input;
  private final File words;
  private final long quietSeconds;
  private final BlockingQueue<String> lines = new LinkedBlockingQueue<>();
  private final JSONObject hello;
  private int number;
  private volatile boolean closed;

  /**
   * Starts an engine and hears its first line.
   *
   * @param command the program and its arguments
   * @param threads how many it computes with; 0 lets it choose
   * @param words where its stderr goes
   * @param quietSeconds after how long without a line an engine at work counts as dead
   */
  public Engine(List<String> command, int threads, File words, long quietSeconds)
      throws EngineException {
    this.words = words;
    this.quietSeconds = quietSeconds;
    ProcessBuilder builder = new ProcessBuilder(command);
    builder.redirectError(ProcessBuilder.Redirect.to(words));
    if (threads > 0) {
      builder.environment().put("TVM_NUM_THREADS", String.valueOf(threads));
    }
    try {
      process = builder.start();
    } catch (IOException e) {
      throw new EngineException(EngineException.NO_ENGINE, String.valueOf(e.getMessage()), e);
    }
    input = process.getOutputStream();
    Thread reader = new Thread(new Reader(process.getInputStream()), "engine");
    reader.setDaemon(true);
    reader.start();
    try {
      hello = checked(receive(START_SECONDS));
      if (hello.optInt("protocol") != PROTOCOL) {
        throw new EngineException(
            EngineException.NO_ENGINE,
            "the engine speaks version " + hello.opt("protocol") + " of the protocol, not 1");
      }
    } catch (EngineException e) {
      close();
      throw e;
    }
  }

  /** What the engine said of itself. */
  public JSONObject hello() {
    return hello;
  }

  /** Sends a request and waits for its last event. */
  public JSONObject request(String op, JSONObject fields, Listener listener)
      throws EngineException {
    int id = ++number;
    JSONObject request = Json.object("op", op, "id", id);
    for (Iterator<String> names = fields.keys(); names.hasNext(); ) {
      String name = names.next();
      Json.put(request, name, fields.opt(name));
    }
    send(request);
    while (true) {
      JSONObject line = receive(quietSeconds);
      if (line.optInt("id", id) != id) {
        continue; // of a cancel
      }
      String event = checked(line).optString("event");
      if (event.equals("done")) {
        return line;
      } else if (event.equals("progress")) {
        listener.onProgress(line.optString("stage"), line.optLong("done"), line.optLong("total"));
      } else if (event.equals("text")) {
        listener.onText(line.optString("text"));
      }
    }
  }

  /** Ends the request that is under way; an answer then stops with reason `cancelled`. */
  public void cancel() {
    try {
      send(Json.object("op", "cancel", "id", CANCEL_ID));
    } catch (EngineException e) {
      return; // it is dead, so nothing is under way; whoever waits for it hears of that
    }
  }

  /** Ends the engine; what it was doing is cancelled. Later calls throw. */
  @Override
  public void close() {
    closed = true;
    try {
      input.close();
    } catch (IOException e) {
      process.destroyForcibly();
    }
    try {
      if (!process.waitFor(END_SECONDS, TimeUnit.SECONDS)) {
        process.destroyForcibly();
      }
    } catch (InterruptedException e) {
      process.destroyForcibly();
      Thread.currentThread().interrupt();
    }
  }

  private void send(JSONObject line) throws EngineException {
    if (closed) {
      throw new EngineException(EngineException.DIED, "the engine is closed");
    }
    byte[] bytes = (line + "\n").getBytes(StandardCharsets.UTF_8);
    try {
      synchronized (input) {
        input.write(bytes);
        input.flush();
      }
    } catch (IOException e) {
      throw death();
    }
  }

  private JSONObject receive(long seconds) throws EngineException {
    String line;
    try {
      line = lines.poll(seconds, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new EngineException(EngineException.CANCELLED, "interrupted", e);
    }
    if (line == null) {
      process.destroyForcibly();
      throw new EngineException(
          EngineException.SILENT, "the engine said nothing for " + seconds + " s");
    }
    if (line.equals(END)) {
      lines.add(END); // for whoever asks next
      throw death();
    }
    try {
      return new JSONObject(line);
    } catch (JSONException e) {
      process.destroyForcibly();
      throw new EngineException(EngineException.CRASHED, "the engine said what is no JSON", e);
    }
  }

  private static JSONObject checked(JSONObject line) throws EngineException {
    if (line.optString("event").equals("error")) {
      throw new EngineException(line.optString("code"), line.optString("message"));
    }
    return line;
  }

  /** Tells why the engine ended, as far as its end shows. */
  private EngineException death() {
    int code;
    try {
      if (!process.waitFor(END_SECONDS, TimeUnit.SECONDS)) {
        process.destroyForcibly();
        return new EngineException(EngineException.SILENT, "the engine closed its output");
      }
      code = process.exitValue();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return new EngineException(EngineException.DIED, "interrupted", e);
    }
    String end =
        code > SIGNALLED ? "ended by signal " + (code - SIGNALLED) : "ended with code " + code;
    String last = lastWords();
    String said = last.isEmpty() ? "" : ": " + last;
    return new EngineException(reason(code), "the engine " + end + said);
  }

  private static String reason(int code) {
    switch (code - SIGNALLED) {
      case SIGKILL:
        return EngineException.KILLED;
      case SIGSYS:
        return EngineException.FORBIDDEN;
      case SIGILL:
      case SIGABRT:
      case SIGBUS:
      case SIGFPE:
      case SIGSEGV:
        return EngineException.CRASHED;
      default:
        return EngineException.DIED;
    }
  }

  private String lastWords() {
    try {
      byte[] all = Files.readAllBytes(words.toPath());
      int from = Math.max(0, all.length - LAST_WORDS);
      return new String(all, from, all.length - from, StandardCharsets.UTF_8).trim();
    } catch (IOException e) {
      return "";
    }
  }

  /** Moves lines from the pipe to the queue until the pipe ends. */
  private final class Reader implements Runnable {
    private final InputStream stream;

    Reader(InputStream stream) {
      this.stream = stream;
    }

    @Override
    public void run() {
      try (BufferedReader reader =
          new BufferedReader(new InputStreamReader(stream, StandardCharsets.UTF_8))) {
        String line;
        while ((line = reader.readLine()) != null) {
          if (!line.isEmpty()) {
            lines.add(line);
          }
        }
      } catch (IOException e) {
        process.destroyForcibly(); // the pipe broke; nobody can hear it any more
      } finally {
        lines.add(END);
      }
    }
  }
}
