package org.minicpmv.core;

import java.io.Closeable;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Field;

/**
 * Runs long operations on one worker thread, one at a time.
 *
 * <p>Methods may be called from any thread and return at once.
 */
final class ChatWorker implements Closeable, LoadedModel.VerificationListener {
  private static final long END_SECONDS = 30;

  /** Called when the state has changed. */
  interface ChangeListener {
    void onChange();
  }

  private final Host host;
  private final Log log;
  private final ChatStore chats;
  private final Pictures pictures;
  private final ChangeListener changes;
  private final LoadedModel model;
  private final ExecutorService worker = Executors.newSingleThreadExecutor();

  private Job job; // the running job; null: none
  private Job waiting; // an answer that waits for the running job; null: none
  private final Deque<ServeTask> served = new ArrayDeque<>(); // they wait for the user's jobs

  ChatWorker(
      Host host,
      AppPaths paths,
      Log log,
      ChatStore chats,
      Pictures pictures,
      ChangeListener changes) {
    this.host = host;
    this.log = log;
    this.chats = chats;
    this.pictures = pictures;
    this.changes = changes;
    model = new LoadedModel(host, paths, log, this);
  }

  /** Unpacks the bundle's files, finds the weights, and loads the model. */
  void prepare() {
    model.reset();
    begin(new PrepareTask());
  }

  /** Answers a chat's last question. */
  void answer(Chat chat) {
    begin(new AnswerTask(chat));
  }

  /** Answers another program once no other job is running; the user's jobs come first. */
  void serve(ServedChat chat) {
    ServeTask task = new ServeTask(chat);
    synchronized (this) {
      if (job != null) {
        served.add(task);
        return;
      }
      job = task.job;
      worker.execute(task);
    }
    changes.onChange();
  }

  /** Cancels an answer for another program, in progress or not. */
  void cancel(ServedChat chat) {
    chat.cancel.cancel();
    synchronized (this) {
      if (job == null || job.cancel != chat.cancel) {
        return;
      }
    }
    model.cancel();
  }

  /** See {@link Assistant#importWeights}. */
  void importWeights(LentFile source, boolean isKept) throws EngineException {
    if (!begin(new ImportTask(source, isKept))) {
      FileTools.closeQuietly(source);
      throw new EngineException(EngineException.BUSY, "another job is running");
    }
  }

  /** Runs the self-check; its results are sent as an event. */
  void check() {
    begin(new CheckTask());
  }

  /** Measures the speed; its results are sent as an event. */
  void bench() {
    begin(new BenchTask());
  }

  /** Stops the running job and the waiting answer. */
  void stop() {
    synchronized (this) {
      if (waiting != null) {
        waiting.cancel.cancel();
      }
      if (job == null) {
        return;
      }
      job.cancel.cancel();
    }
    model.cancel();
  }

  /** See {@link Assistant#setSparing}. */
  void setSparing(boolean isSparing) {
    model.setSparing(isSparing);
  }

  /** Returns the running or waiting answer; null if there is none. */
  synchronized Job answering() {
    return job != null && job.chat != null ? job : waiting;
  }

  /** Returns the settings; null until the first job has read them. */
  Settings settings() {
    return model.settings();
  }

  /** Unloads the engine to free its memory, unless a job is running. */
  void unload() {
    begin(new UnloadTask());
  }

  /** Loads the engine again after {@link #unload}. */
  void reload() {
    if (model.isUnloaded()) {
      begin(new LoadTask());
    }
  }

  /** Adds jobs and model to the page's state. */
  void describe(JSONObject state) {
    synchronized (this) {
      Json.put(state, "job", job == null ? null : job.toJson());
      Job answer = answering();
      Json.put(state, "answering", answer == null ? null : answer.chat);
    }
    model.describe(state);
  }

  /** Stops using damaged weights. */
  @Override
  public void onVerified(EngineException found) {
    if (found != null) {
      unload();
      fail(found, null);
    }
    changes.onChange();
  }

  /** Stops all jobs and the engine. */
  @Override
  public void close() {
    model.end();
    synchronized (this) {
      for (ServeTask task : served) {
        task.report(new EngineException(EngineException.CANCELLED, "the app ends"));
      }
      served.clear();
    }
    stop();
    worker.execute(new UnloadTask());
    worker.shutdown();
    try {
      worker.awaitTermination(END_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** Starts a task if none is running. An answer is queued behind any job but another answer. */
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

  /** Begins the next answer for another program; returns whether there is one. Needs the lock. */
  private boolean beginServed() {
    ServeTask next = served.poll();
    if (next != null) {
      job = next.job;
      worker.execute(next);
    }
    return next != null;
  }

  private void fail(EngineException e, String chat) {
    log.add(e.code() + ": " + e.getMessage());
    if (!e.code().equals(EngineException.CANCELLED)) {
      host.toPage(
          Json.object(
              "event", "error", "code", e.code(), "message", e.getMessage(), "chat", chat));
    }
  }

  /** Forwards the engine's events to the page. */
  private class JobListener implements Engine.Listener {
    private final Job running;

    JobListener(Job running) {
      this.running = running;
    }

    @Override
    public void onProgress(String stage, long done, long total) {
      onProgress(stage, done, total, null);
    }

    @Override
    public void onProgress(String stage, long done, long total, JSONArray grid) {
      running.advance(stage, done, total, grid);
      JSONObject event = running.toJson();
      Json.put(event, "event", "progress");
      host.toPage(event);
      repeatCancel();
    }

    @Override
    public void onText(String text) {
      if (running.chat != null) { // else nobody reads it
        int at = running.add(text);
        host.toPage(Json.object("event", "text", "chat", running.chat, "at", at, "text", text));
      }
      repeatCancel();
    }

    @Override
    public void onToken(JSONObject line) {
      repeatCancel(); // nobody here reads it
    }

    /** Repeats a cancel that may have come before the engine had the request. */
    private void repeatCancel() {
      if (running.cancel.isCancelled()) {
        model.cancel();
      }
    }
  }

  /** A job's work on the worker thread. */
  private abstract class Task implements Runnable {
    final Job job;

    Task(Job job) {
      this.job = job;
    }

    abstract void perform() throws EngineException;

    void report(EngineException e) {
      fail(e, job.chat);
    }

    @Override
    public void run() {
      synchronized (ChatWorker.this) {
        ChatWorker.this.job = job;
        waiting = waiting == job ? null : waiting;
      }
      host.setBusy(!job.kind.equals(Job.UNLOAD));
      boolean goesOn = false;
      try {
        perform();
      } catch (EngineException e) {
        if (model.recordFailure(e)) {
          worker.execute(new LoadTask());
          goesOn = true;
        }
        report(e);
      } catch (RuntimeException e) {
        log.add("internal error: " + where(e));
        report(new EngineException(EngineException.INTERNAL, String.valueOf(e), e));
      } finally {
        synchronized (ChatWorker.this) {
          ChatWorker.this.job = null;
          goesOn = goesOn || waiting != null || beginServed();
        }
        if (!goesOn) { // stay busy: an app in the background could not become busy again
          host.setBusy(false);
        }
        changes.onChange();
      }
    }

    private String where(RuntimeException e) {
      StackTraceElement[] trace = e.getStackTrace();
      return e + (trace.length == 0 ? "" : " at " + trace[0]);
    }
  }

  private final class PrepareTask extends Task {
    PrepareTask() {
      super(new Job(Job.LOAD, null));
    }

    @Override
    void perform() throws EngineException {
      JobListener listener = new JobListener(job);
      model.read();
      changes.onChange();
      model.extractEmbedded(listener, job.cancel);
      model.load(listener, job.cancel);
    }
  }

  private final class LoadTask extends Task {
    LoadTask() {
      super(new Job(Job.LOAD, null));
    }

    @Override
    void perform() throws EngineException {
      model.load(new JobListener(job), job.cancel);
    }
  }

  private final class ImportTask extends Task {
    private final LentFile source;
    private final boolean isKept;

    ImportTask(LentFile source, boolean isKept) {
      super(new Job(Job.IMPORT, null));
      this.source = source;
      this.isKept = isKept;
    }

    @Override
    void perform() throws EngineException {
      JobListener listener = new JobListener(job);
      try {
        model.importWeights(source, isKept, listener, job.cancel);
      } finally {
        FileTools.closeQuietly(source);
      }
      model.load(listener, job.cancel);
    }
  }

  private final class AnswerTask extends Task {
    private final Chat chat;

    AnswerTask(Chat chat) {
      super(new Job(Job.ANSWER, chat.id));
      this.chat = chat;
    }

    @Override
    void perform() throws EngineException {
      JobListener listener = new JobListener(job);
      JSONObject speed = new JSONObject();
      String stop = "failed";
      try {
        model.load(listener, job.cancel);
        job.cancel.check();
        JSONObject line =
            model.manager().chat(
                chat.messages(),
                chat.picture(),
                pictures,
                settings(),
                listener,
                job.cancel,
                speed);
        stop = line.optString(Field.STOP);
        Json.put(speed, "statistics", line.optJSONObject(Field.STATISTICS));
      } finally {
        if (!job.text().isEmpty()) { // also if the engine died midway
          chat.answer(Turn.answer(job.text(), stop, speed), System.currentTimeMillis());
          chats.save(chat);
        }
      }
    }
  }

  private final class ServeTask extends Task {
    private final ServedChat chat;

    ServeTask(ServedChat chat) {
      super(new Job(Job.SERVE, null, chat.cancel));
      this.chat = chat;
    }

    @Override
    void perform() throws EngineException {
      JobListener listener =
          new JobListener(job) {
            @Override
            public void onText(String text) {
              chat.onText(text);
              super.onText(text);
            }

            @Override
            public void onToken(JSONObject line) {
              chat.onToken(line);
              super.onToken(line);
            }
          };
      JSONObject line;
      try {
        job.cancel.check();
        model.load(listener, job.cancel);
        line = model.manager().chat(chat, host.decoder(), settings(), listener);
      } catch (OutOfMemoryError e) { // the request's picture
        throw FileTools.failure(EngineException.OUT_OF_MEMORY, "", e);
      }
      chat.onDone(line);
    }

    /** Tells the other program, not the page. */
    @Override
    void report(EngineException e) {
      log.add(job.kind + ": " + e.code() + ": " + e.getMessage());
      chat.onFailed(e);
    }
  }

  private final class CheckTask extends Task {
    CheckTask() {
      super(new Job(Job.CHECK, null));
    }

    @Override
    void perform() throws EngineException {
      JSONArray results =
          model.selfCheck(new JobListener(job), job.cancel).run(model);
      log.add("self-check: " + results);
      host.toPage(Json.object("event", "check", "results", results));
    }
  }

  private final class BenchTask extends Task {
    BenchTask() {
      super(new Job(Job.BENCH, null));
    }

    @Override
    void perform() throws EngineException {
      JobListener listener = new JobListener(job);
      model.load(listener, job.cancel);
      JSONObject results = model.benchmark(listener, job.cancel);
      double temperature = host.temperature();
      Json.put(results, "temperature_c", Double.isNaN(temperature) ? null : (Object) temperature);
      log.add("benchmark: " + results);
      host.toPage(Json.object("event", "bench", "results", results));
    }
  }

  private final class UnloadTask extends Task {
    UnloadTask() {
      super(new Job(Job.UNLOAD, null));
    }

    @Override
    void perform() {
      model.unload();
    }
  }
}
