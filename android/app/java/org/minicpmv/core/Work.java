package org.minicpmv.core;

import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.json.JSONArray;
import org.json.JSONObject;

/**
 * Does what takes long, on one thread, one thing after the other; beside it weights are hashed.
 *
 * <p>Its methods come from any thread and return at once.
 */
final class Work implements Closeable {
  private static final String UNKNOWN = "no";
  private static final String RUNNING = "running";
  private static final String VERIFIED = "yes";
  private static final String DAMAGED = "failed";
  private static final long MEMORY_BESIDE_WEIGHTS = 300L << 20; // bytes: cache, buffers, the page
  private static final long END_SECONDS = 30;

  /** Hears that something is different now. */
  interface Changes {
    void onChange();
  }

  private final Host host;
  private final Places places;
  private final Log log;
  private final ChatStore chats;
  private final Pictures pictures;
  private final Changes changes;
  private final RestartPolicy policy = new RestartPolicy();
  private final ExecutorService worker = Executors.newSingleThreadExecutor();
  private final ExecutorService verifier = Executors.newSingleThreadExecutor();
  private final Cancel end = new Cancel();

  private BundleFiles bundle; // these four stand once the first job has run
  private Settings settings;
  private Weights weights;
  private EngineKeeper keeper;
  private Job job; // what is under way; null: nothing
  private Job waiting; // an answer that waits for what is under way; null: none
  private EngineException problem; // why nothing can be asked; null: all is well
  private JSONObject model; // what the engine said of the bundle; null: not loaded
  private String verified = UNKNOWN;

  Work(
      Host host, Places places, Log log, ChatStore chats, Pictures pictures, Changes changes) {
    this.host = host;
    this.places = places;
    this.log = log;
    this.chats = chats;
    this.pictures = pictures;
    this.changes = changes;
  }

  /** Reads what the app carries, finds the weights, and loads. */
  void prepare() {
    policy.forgive();
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
    EngineKeeper running;
    synchronized (this) {
      if (waiting != null) {
        waiting.cancel.wish();
      }
      if (job == null) {
        return;
      }
      job.cancel.wish();
      running = keeper;
    }
    if (running != null) {
      running.cancel();
    }
  }

  /** Returns the answer to a chat that is under way or waits; null if there is none. */
  synchronized Job answering() {
    return job != null && job.chat != null ? job : waiting;
  }

  /** Returns null until the first job has read them. */
  synchronized Settings settings() {
    return settings;
  }

  /** Frees the engine's memory, unless it is at work. */
  void rest() {
    begin(new Unloading());
  }

  /** Loads what {@link #rest} freed. */
  void wake() {
    boolean asleep;
    synchronized (this) {
      asleep = keeper != null && !keeper.isReady() && problem == null;
    }
    if (asleep) {
      begin(new Loading());
    }
  }

  /** Adds to the page's state what is known here. */
  synchronized void describe(JSONObject state) {
    Json.put(state, "job", job == null ? null : job.toJson());
    Job answer = answering();
    Json.put(state, "answering", answer == null ? null : answer.chat);
    Json.put(state, "model", model);
    Json.put(state, "verified", verified);
    Json.put(state, "settings", settings == null ? null : settings.all());
    Json.put(state, "engine", keeper == null ? null : keeper.hello());
    if (problem != null) {
      Json.put(
          state, "problem", Json.object("code", problem.code(), "message", problem.getMessage()));
    }
    if (bundle == null) {
      return;
    }
    JSONObject about = bundle.about();
    Json.put(about, "weights_bytes", weights.size());
    Json.put(state, "bundle", about);
    long available = host.availableMemory();
    boolean isLow = available >= 0 && available < weights.size() + MEMORY_BESIDE_WEIGHTS;
    Json.put(state, "low_memory", model == null && isLow ? available : null);
  }

  /** Ends everything. */
  @Override
  public void close() {
    end.wish();
    stop();
    worker.execute(new Unloading());
    worker.shutdown();
    verifier.shutdown();
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

  /** Finds the weights, loads them, and has them verified in the background. */
  private void load(Job running) throws EngineException {
    synchronized (this) {
      if (verified.equals(DAMAGED) && problem != null) {
        throw problem;
      }
    }
    File file = weights.find();
    JSONObject said = keeper.ready(settings, new Listening(running));
    synchronized (this) {
      problem = null;
      model = said;
      if (weights.isVerified(file)) {
        verified = VERIFIED;
      } else if (!verified.equals(RUNNING)) {
        verified = RUNNING;
        verifier.execute(new Verifying(file));
      }
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
        keeper.cancel();
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
      try {
        perform();
      } catch (EngineException e) {
        note(e);
        fail(e, job.chat);
      } catch (RuntimeException e) {
        log.add("a mistake of the app: " + where(e));
        fail(new EngineException("internal", String.valueOf(e), e), job.chat);
      } finally {
        synchronized (Work.this) {
          Work.this.job = null;
        }
        host.working(false);
        changes.onChange();
      }
    }

    /** Keeps in mind what stands in the way, and starts an engine again that died. */
    private void note(EngineException e) {
      boolean again = e.isDeath() && policy.died(System.currentTimeMillis()) && !end.isWished();
      synchronized (Work.this) {
        model = e.isDeath() ? null : model;
        if (model == null && !again && !e.code().equals(EngineException.CANCELLED)) {
          problem = e;
        }
      }
      if (again) {
        worker.execute(new Loading());
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
      BundleFiles files = new BundleFiles(new File(places.files, "bundle"), host);
      synchronized (Work.this) {
        bundle = files;
        settings = new Settings(new File(places.files, "settings.json"), files.generation, log);
        weights = new Weights(files.folder, places.outsideWeights, files.record(Weights.NAME));
        if (keeper == null) {
          keeper = new EngineKeeper(places.engine, files.folder, places.cache, log);
        }
        problem = null;
        verified = verified.equals(DAMAGED) ? UNKNOWN : verified;
      }
      changes.onChange();
      takeEmbedded();
      load(job);
    }

    /** Weights that the app carries are copied out, so that the engine can map them. */
    private void takeEmbedded() throws EngineException {
      try {
        weights.find();
        return;
      } catch (EngineException missing) {
        try (InputStream source = host.bundleFile(Weights.NAME)) {
          weights.importFrom(source, -1, new Listening(job), job.cancel);
        } catch (IOException e) {
          throw missing; // the app carries none
        } catch (EngineException e) {
          throw e.code().equals(EngineException.CANCELLED) ? missing : e;
        }
      }
    }
  }

  private final class Loading extends Task {
    Loading() {
      super(new Job(Job.LOAD, null));
    }

    @Override
    void perform() throws EngineException {
      load(job);
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
      try {
        keeper.unload(); // it has the file mapped that goes
        weights.importFrom(source, length, new Listening(job), job.cancel);
      } finally {
        closeQuietly(source);
      }
      synchronized (Work.this) {
        problem = null;
        verified = UNKNOWN;
      }
      policy.forgive();
      load(job);
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
        load(job);
        job.cancel.check();
        JSONObject line =
            keeper.chat(
                chat.messages(),
                chat.picture(),
                pictures,
                settings.sampling(),
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
          new SelfCheck(keeper, settings, bundle, new Listening(job), job.cancel).run(weights);
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
      synchronized (Work.this) {
        model = null;
      }
      if (keeper != null) {
        keeper.unload();
      }
    }
  }

  /** Hashes the weights while the user may already ask. */
  private final class Verifying implements Runnable {
    private final File file;

    Verifying(File file) {
      this.file = file;
    }

    @Override
    public void run() {
      try {
        weights.verify(file, new Listening(new Job(Job.VERIFY, null)), end);
        set(VERIFIED, null);
      } catch (EngineException e) {
        if (!end.isWished()) {
          set(DAMAGED, e);
          fail(e, null);
        }
      }
      changes.onChange();
    }

    private void set(String value, EngineException found) {
      synchronized (Work.this) {
        verified = value;
        problem = found == null ? problem : found;
      }
      if (found != null) {
        rest();
      }
    }
  }
}
