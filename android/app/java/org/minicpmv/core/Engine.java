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
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Event;
import org.minicpmv.core.Protocol.Field;
import org.minicpmv.core.Protocol.Op;

/**
 * A running engine: a child process that exchanges JSON lines, see runtime/engine/PROTOCOL.md.
 *
 * <p>A background thread reads its output. All requests come from one thread; only {@link #cancel},
 * {@link #setSparing} and {@link #close} may be called from another.
 */
public final class Engine implements AutoCloseable {
  private static final long START_SECONDS = 60;
  private static final long END_SECONDS = 5;
  private static final int UNHEARD_ID = 0; // nobody waits for the reply; requests count from 1
  private static final String END = ""; // end of output; empty lines are not queued
  private static final int STDERR_TAIL = 2000; // bytes of stderr in error messages
  private static final int SIGNALLED = 128; // exit codes above this: killed by a signal
  private static final int SIGILL = 4;
  private static final int SIGABRT = 6;
  private static final int SIGBUS = 7;
  private static final int SIGFPE = 8;
  private static final int SIGKILL = 9;
  private static final int SIGSEGV = 11;
  private static final int SIGSYS = 31;

  /** Receives streamed text and progress. */
  public interface Listener extends Progress {
    void onText(String text);

    /** @param line a token of the answer, before its text; only if the request asks for them */
    void onToken(JSONObject line);

    /** As above; `grid`: columns and rows of the slices of the picture being encoded, or null. */
    void onProgress(String stage, long done, long total, JSONArray grid);
  }

  private final Process process;
  private final OutputStream input;
  private final File stderr;
  private final long timeoutSeconds;
  private final BlockingQueue<String> lines = new LinkedBlockingQueue<>();
  private final JSONObject hello;
  private int lastId;
  private volatile boolean closed;

  /**
   * Starts an engine and reads its first line.
   *
   * @param command the program and its arguments
   * @param threads number of compute threads; 0 lets the engine choose
   * @param stderr file for its stderr
   * @param timeoutSeconds a busy engine that sends nothing for this long counts as hung
   */
  public Engine(List<String> command, int threads, File stderr, long timeoutSeconds)
      throws EngineException {
    this.stderr = stderr;
    this.timeoutSeconds = timeoutSeconds;
    ProcessBuilder builder = new ProcessBuilder(command);
    builder.redirectError(ProcessBuilder.Redirect.to(stderr));
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
      if (hello.optInt(Field.PROTOCOL) != Protocol.VERSION) {
        throw new EngineException(
            EngineException.NO_ENGINE,
            "the engine uses protocol version " + hello.opt(Field.PROTOCOL) + "; expected "
                + Protocol.VERSION);
      }
    } catch (EngineException e) {
      close();
      throw e;
    }
  }

  /** The engine's first event, which describes it. */
  public JSONObject hello() {
    return hello;
  }

  /** Sends a request and waits for its last event. */
  public JSONObject request(String op, JSONObject fields, Listener listener)
      throws EngineException {
    return request(op, fields, listener, null);
  }

  /**
   * Loads a bundle.
   *
   * @param weights the file to use; null: the bundle's folder has it
   */
  JSONObject load(JSONObject fields, LentFile weights, Listener listener) throws EngineException {
    Json.put(fields, Field.RECEIVE_WEIGHTS, weights == null ? null : (Object) true);
    return request(Op.LOAD, fields, listener, weights);
  }

  private JSONObject request(String op, JSONObject fields, Listener listener, LentFile weights)
      throws EngineException {
    int id = ++lastId;
    JSONObject request = Json.object(Field.OP, op, Field.ID, id);
    for (Iterator<String> names = fields.keys(); names.hasNext(); ) {
      String name = names.next();
      Json.put(request, name, fields.opt(name));
    }
    send(request);
    while (true) {
      JSONObject line = receive(timeoutSeconds);
      if (line.optInt(Field.ID, id) != id) {
        continue; // a reply that nobody waits for
      }
      String event = checked(line).optString(Field.EVENT);
      if (event.equals(Event.DONE)) {
        return line;
      } else if (event.equals(Event.PROGRESS)) {
        listener.onProgress(
            line.optString(Field.STAGE),
            line.optLong(Field.DONE),
            line.optLong(Field.TOTAL),
            line.optJSONArray(Field.GRID));
      } else if (event.equals(Event.TEXT)) {
        listener.onText(line.optString(Field.TEXT));
      } else if (event.equals(Event.TOKEN)) {
        listener.onToken(line);
      } else if (event.equals(Event.SOCKET)) {
        handOver(weights, line.optString(Field.NAME));
      }
    }
  }

  private void handOver(LentFile weights, String socket) throws EngineException {
    try {
      weights.handTo(socket);
    } catch (IOException e) {
      cancel(); // the engine waits no longer
      throw new EngineException(
          EngineException.FILE_ERROR,
          "the engine cannot be given " + weights.name() + ": " + e.getMessage(),
          e);
    }
  }

  /** Cancels the running request; an answer then stops with reason `cancelled`. */
  public void cancel() {
    sendUnheard(Json.object(Field.OP, Op.CANCEL, Field.ID, UNHEARD_ID));
  }

  /**
   * Halves the number of threads that compute from now on, or not; at least one computes.
   *
   * @return how many do
   */
  public int setSparing(boolean isSparing) {
    int all = hello.optInt(Field.THREADS);
    int used = isSparing ? Math.max(1, all / 2) : all;
    if (all > 1) {
      sendUnheard(Json.object(Field.OP, Op.THREADS, Field.ID, UNHEARD_ID, Field.THREADS, used));
    }
    return used;
  }

  /** Stops the engine and cancels its running request. Later calls throw. */
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

  private void sendUnheard(JSONObject line) {
    try {
      send(line);
    } catch (EngineException e) {
      return; // the engine is gone; the thread that waits for a reply gets the error
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
      throw exitError();
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
          EngineException.SILENT, "the engine sent nothing for " + seconds + " s");
    }
    if (line.equals(END)) {
      lines.add(END); // for later calls
      throw exitError();
    }
    try {
      return new JSONObject(line);
    } catch (JSONException e) {
      process.destroyForcibly();
      throw new EngineException(EngineException.CRASHED, "the engine sent invalid JSON", e);
    }
  }

  private static JSONObject checked(JSONObject line) throws EngineException {
    if (line.optString(Field.EVENT).equals(Event.ERROR)) {
      throw new EngineException(line.optString(Field.CODE), line.optString(Field.MESSAGE));
    }
    return line;
  }

  /** Returns why the engine exited, as far as its exit code and stderr show. */
  private EngineException exitError() {
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
        code > SIGNALLED
            ? "was killed by signal " + (code - SIGNALLED)
            : "exited with code " + code;
    String tail = stderrTail();
    String detail = tail.isEmpty() ? "" : ": " + tail;
    return new EngineException(reason(code), "the engine " + end + detail);
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

  private String stderrTail() {
    try {
      byte[] all = Files.readAllBytes(stderr.toPath());
      int from = Math.max(0, all.length - STDERR_TAIL);
      return new String(all, from, all.length - from, StandardCharsets.UTF_8).trim();
    } catch (IOException e) {
      return "";
    }
  }

  /** Moves lines from the pipe to the queue until the end of the pipe. */
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
        process.destroyForcibly(); // the pipe broke; nothing can be read any more
      } finally {
        lines.add(END);
      }
    }
  }
}
