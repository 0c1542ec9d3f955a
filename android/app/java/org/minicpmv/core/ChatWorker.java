package org.minicpmv.core;

import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.json.JSONArray;
import org.json.JSONObject;

/**
 * Does what takes long, on one thread, one thing after the other.
 *
 * <p>Its methods come from any thread and return at once.
 */
final class Work implements Closeable, Model.Watcher {
  private static final long END_SECONDS = 30;

  /** Hears that something is different now. */
  interface Changes {
    void onChange();
  }

  private final Host host;
  private final Log log;
  private final ChatStore chats;
  private final Pictures pictures;
  private final Changes changes;
  private final Model model;
  private final ExecutorService worker = Executors.newSingleThreadExecutor();

  private Job job; // what is under way; null: nothing
  private Job waiting; // an answer that waits for what is under way; null: none

  Work(
      Host host, Places places, Log log, ChatStore chats, Pictures pictures, Changes changes) {
    this.host = host;
    this.log = log;
    this.chats = chats;
    this.pictures = pictures;
    this.changes = changes;
    model = new Model(host, places, log, this);
  }

  /** Reads what the app carries, finds the weights, and loads. */
  void prepare() {
    model.forgive();
    begin(new Preparing());
  }

  /** Answers a chat's last question. */
  void answer(Chat chat) {
    begin(new Answering(chat));
  }

  /** Copies weights into the app, and closes the source. */
  void importWeights(InputStream source, long length) throws EngineException {
    if (!begin(new Importing(source, length))) {
      closeQuietly(source);
      throw new EngineException(EngineException.BUSY, "something else is under way");
    }
  }

  /** Checks that everything works; the result is an event. */
  void check() {
    begin(new Checking());
  }

  /** Ends what is under way and what waits. */
  void stop() {
    synchronized (this) {
      if (waiting != null) {
        waiting.cancel.wish();
      }
      if (job == null) {
        return;
      }
      job.cancel.wish();
    }
    model.cancel();
  }

  /** Returns the answer to a chat that is under way or waits; null if there is none. */
  synchronized Job answering() {
    return job != null && job.chat != null ? job : waiting;
  }

  /** Returns null until the first job has read them. */
  Settings settings() {
    return model.settings();
  }

  /** Frees the engine's memory, unless it is at work. */
  void rest() {
    begin(new Unloading());
  }

  /** Loads what {@link #rest} freed. */
  void wake() {
    if (model.isAsleep()) {
      begin(new Loading());
    }
  }

  /** Adds to the page's state what is known here. */
  void describe(JSONObject state) {
    synchronized (this) {
      Json.put(state, "job", job == null ? null : job.toJson());
      Job answer = answering();
      Json.put(state, "answering", answer == null ? null : answer.chat);
    }
    model.describe(state);
  }

  /** Weights that are damaged are not used any longer. */
  @Override
  public void onVerified(EngineException found) {
    if (found != null) {
      rest();
      fail(found, null);
    }
    changes.onChange();
  }

  /** Ends everything. */
  @Override
  public void close() {
    model.end();
    stop();
    worker.execute(new Unloading());
    worker.shutdown();
    try {
      worker.awaitTermination(END_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** Begins a task, unless another is under way; an answer waits for what is no answer, though. */
  private boolean begin(Task task) {
    synchronized (this) {
      if (job != null) {
        if (task.job.chat == null || answering() != null) {
          return false;
        }
        waiting = task.job;
      } else {
        job = task.job;
      }
      worker.execute(task);
    }
    changes.onChange();
    return true;
  }

  private void fail(EngineException e, String chat) {
    log.add(e.code() + ": " + e.getMessage());
    if (!e.code().equals(EngineException.CANCELLED)) {
      host.toPage(
          Json.object(
              "event", "error", "code", e.code(), "message", e.getMessage(), "chat", chat));
    }
  }

  private static void closeQuietly(InputStream source) {
    try {
      source.close();
    } catch (IOException e) {
      return; // it was only read
    }
  }

  /** Hears the engine and tells the page. */
  private final class Listening implements Engine.Listener {
    private final Job running;

    Listening(Job running) {
      this.running = running;
    }

    @Override
    public void onProgress(String stage, long done, long total) {
      running.advance(stage, done, total);
      host.toPage(
          Json.object(
              "event", "progress", "kind", running.kind, "chat", running.chat,
              "stage", stage, "done", done, "total", total));
      heed();
    }

    @Override
    public void onText(String text) {
      int at = running.add(text);
      host.toPage(Json.object("event", "text", "chat", running.chat, "at", at, "text", text));
      heed();
    }

    /** A wish that came before the engine had the request is told again. */
    private void heed() {
      if (running.cancel.isWished()) {
        model.cancel();
      }
    }
  }

  /** Something to do for a job. */
  private abstract class Task implements Runnable {
    final Job job;

    Task(Job job) {
      this.job = job;
    }

    abstract void perform() throws EngineException;

    @Override
    public void run() {
      synchronized (Work.this) {
        Work.this.job = job;
        waiting = waiting == job ? null : waiting;
      }
      host.working(!job.kind.equals(Job.REST));
      boolean goesOn = false;
      try {
        perform();
      } catch (EngineException e) {
        if (model.note(e)) {
          worker.execute(new Loading());
          goesOn = true;
        }
        fail(e, job.chat);
      } catch (RuntimeException e) {
        log.add("a mistake of the app: " + where(e));
        fail(new EngineException("internal", String.valueOf(e), e), job.chat);
      } finally {
        synchronized (Work.this) {
          Work.this.job = null;
          goesOn |= waiting != null;
        }
        if (!goesOn) { // an app that is not seen could not begin again to be kept
          host.working(false);
        }
        changes.onChange();
      }
    }

    private String where(RuntimeException e) {
      StackTraceElement[] trace = e.getStackTrace();
      return e + (trace.length == 0 ? "" : " at " + trace[0]);
    }
  }

  private final class Preparing extends Task {
    Preparing() {
      super(new Job(Job.LOAD, null));
    }

    @Override
    void perform() throws EngineException {
      Listening listening = new Listening(job);
      model.read();
      changes.onChange();
      model.takeEmbedded(listening, job.cancel);
      model.load(listening);
    }
  }

  private final class Loading extends Task {
    Loading() {
      super(new Job(Job.LOAD, null));
    }

    @Override
    void perform() throws EngineException {
      model.load(new Listening(job));
    }
  }

  private final class Importing extends Task {
    private final InputStream source;
    private final long length;

    Importing(InputStream source, long length) {
      super(new Job(Job.IMPORT, null));
      this.source = source;
      this.length = length;
    }

    @Override
    void perform() throws EngineException {
      Listening listening = new Listening(job);
      try {
        model.importWeights(source, length, listening, job.cancel);
      } finally {
        closeQuietly(source);
      }
      model.load(listening);
    }
  }

  private final class Answering extends Task {
    private final Chat chat;

    Answering(Chat chat) {
      super(new Job(Job.ANSWER, chat.id));
      this.chat = chat;
    }

    @Override
    void perform() throws EngineException {
      Listening listening = new Listening(job);
      JSONObject speed = new JSONObject();
      String stop = "failed";
      try {
        model.load(listening);
        job.cancel.check();
        JSONObject line =
            model.keeper().chat(
                chat.messages(),
                chat.picture(),
                pictures,
                settings().sampling(),
                listening,
                job.cancel,
                speed);
        stop = line.optString("stop");
        Json.put(speed, "statistics", line.optJSONObject("statistics"));
      } finally {
        if (!job.text().isEmpty()) { // what was said before an engine died is kept, too
          chat.answer(Turn.answer(job.text(), stop, speed), System.currentTimeMillis());
          chats.save(chat);
        }
      }
    }
  }

  private final class Checking extends Task {
    Checking() {
      super(new Job(Job.CHECK, null));
    }

    @Override
    void perform() throws EngineException {
      JSONArray results =
          model.selfCheck(new Listening(job), job.cancel).run(model.weights());
      log.add("self-check: " + results);
      host.toPage(Json.object("event", "check", "results", results));
    }
  }

  private final class Unloading extends Task {
    Unloading() {
      super(new Job(Job.REST, null));
    }

    @Override
    void perform() {
      model.unload();
    }
  }
}
