package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Field;

/**
 * The bundle, its weights and the engine: finds, verifies, loads and unloads them.
 *
 * <p>Slow methods are called from one thread; weights are hashed on another. All other methods may
 * be called from any thread.
 */
final class LoadedModel {
  private static final String UNKNOWN = "no";
  private static final String RUNNING = "running";
  private static final String VERIFIED = "yes";
  private static final String DAMAGED = "failed";
  private static final String EMBEDDED = "embedded"; // names the weights inside the APK
  private static final long MEMORY_BESIDE_WEIGHTS = 300L << 20; // bytes: cache, buffers, the page

  /** Receives the result of the background verification. */
  interface VerificationListener {
    /** Called with null if the weights are intact. */
    void onVerified(EngineException problem);
  }

  private final Host host;
  private final AppPaths paths;
  private final Log log;
  private final VerificationListener watcher;
  private final RestartPolicy policy = new RestartPolicy();
  private final ExecutorService verifier = Executors.newSingleThreadExecutor();
  private final CancelToken end = new CancelToken();

  private BundleFiles bundle; // null until `read` has run, like the next three
  private Settings settings;
  private Weights weights;
  private EngineManager manager;
  private EngineException problem; // why the model cannot be used; null: none
  private JSONObject loaded; // the reply to `load`; null: not loaded
  private String verified = UNKNOWN;
  private boolean sparing; // see `setSparing`

  LoadedModel(Host host, AppPaths paths, Log log, VerificationListener watcher) {
    this.host = host;
    this.paths = paths;
    this.log = log;
    this.watcher = watcher;
  }

  /** Unpacks and reads the files that are packaged in the app. */
  void read() throws EngineException {
    BundleFiles files = new BundleFiles(new File(paths.files, "bundle"), host);
    JSONObject ranges = Settings.readRanges(host);
    synchronized (this) {
      bundle = files;
      settings =
          new Settings(new File(paths.files, "settings.json"), files.defaults(), ranges, log);
      weights = new Weights(files.folder, paths.externalWeights, files.record(Weights.NAME));
      if (manager == null) {
        manager = new EngineManager(paths.engine, files.folder, paths.cache, log);
        manager.setSparing(sparing);
      }
      problem = null;
      verified = verified.equals(DAMAGED) ? UNKNOWN : verified;
    }
  }

  /** Copies embedded weights out of the app, so that the engine can map them. */
  void extractEmbedded(Progress progress, CancelToken cancel) throws EngineException {
    try {
      weights.find();
      return;
    } catch (EngineException missing) {
      try (InputStream source = host.bundleFile(Weights.NAME)) {
        weights.importFrom(source, -1, EMBEDDED, progress, cancel);
      } catch (IOException e) {
        throw missing; // no weights are embedded
      } catch (EngineException e) {
        throw e.code().equals(EngineException.CANCELLED) ? missing : e;
      }
    }
  }

  /** Copies weights into the app. */
  void importWeights(
      InputStream source, long length, String name, Progress progress, CancelToken cancel)
      throws EngineException {
    weights.requireSpace(length); // before anything changes
    manager.unload(); // it has the old file mapped
    weights.importFrom(source, length, name, progress, cancel);
    synchronized (this) {
      problem = null;
      verified = UNKNOWN;
    }
    policy.reset();
  }

  /** Finds the weights, loads them, and verifies them in the background. */
  void load(Engine.Listener listener) throws EngineException {
    synchronized (this) {
      if (verified.equals(DAMAGED) && problem != null) {
        throw problem;
      }
    }
    File file = weights.find();
    JSONObject said = manager.ready(settings, listener);
    synchronized (this) {
      problem = null;
      loaded = said;
      if (weights.isVerified(file)) {
        verified = VERIFIED;
      } else if (!verified.equals(RUNNING) && !end.isCancelled()) {
        verified = RUNNING;
        verifier.execute(new VerifyTask(file));
      }
    }
  }

  /** See {@link Assistant#setSparing}. */
  synchronized void setSparing(boolean isSparing) {
    sparing = isSparing;
    if (manager != null) {
      manager.setSparing(isSparing);
    }
  }

  /** Frees the engine's memory. */
  void unload() {
    EngineManager running;
    synchronized (this) {
      loaded = null;
      running = manager;
    }
    if (running != null) {
      running.unload();
    }
  }

  /** Creates a self-check. */
  SelfCheck selfCheck(Engine.Listener listener, CancelToken cancel) {
    return new SelfCheck(manager, settings, bundle, listener, cancel);
  }

  /** Measures the loaded model's speed. */
  JSONObject benchmark(Engine.Listener listener, CancelToken cancel) throws EngineException {
    boolean sees;
    synchronized (this) {
      sees = loaded != null && loaded.optInt(Field.IMAGE_TOKENS) > 0;
    }
    return new Benchmark(manager, paths.cache, listener, cancel).run(sees);
  }

  /** Records a failure; returns whether to restart an engine that died. */
  boolean recordFailure(EngineException e) {
    boolean isLost = e.isEngineLost();
    boolean again = isLost && policy.died(System.currentTimeMillis()) && !end.isCancelled();
    synchronized (this) {
      loaded = isLost ? null : loaded;
      // An import that broke off leaves the problem for which it was started.
      boolean isNew = problem == null || !e.code().equals(EngineException.FILE_ERROR);
      if (loaded == null && !again && isNew && !e.code().equals(EngineException.CANCELLED)) {
        problem = e;
      }
    }
    return again;
  }

  /** Allows restarts again: the user asked for a retry. */
  void reset() {
    policy.reset();
  }

  /** Cancels the engine's running request. */
  void cancel() {
    EngineManager running = manager();
    if (running != null) {
      running.cancel();
    }
  }

  /** Whether the engine is merely unloaded, and could be loaded. */
  synchronized boolean isUnloaded() {
    return manager != null && !manager.isReady() && problem == null;
  }

  /** Returns null until {@link #read} has run, as the next two do. */
  synchronized Settings settings() {
    return settings;
  }

  synchronized EngineManager manager() {
    return manager;
  }

  synchronized Weights weights() {
    return weights;
  }

  /** Adds the model's part to the page's state. */
  synchronized void describe(JSONObject state) {
    Json.put(state, "model", loaded);
    Json.put(state, "verified", verified);
    Json.put(state, "settings", settings == null ? null : settings.all());
    Json.put(state, "ranges", settings == null ? null : settings.ranges());
    Json.put(state, "engine", manager == null ? null : manager.hello());
    if (problem != null) {
      Json.put(
          state, "problem", Json.object("code", problem.code(), "message", problem.getMessage()));
    }
    if (bundle == null) {
      return;
    }
    JSONObject about = bundle.about();
    Json.put(about, "weights_bytes", weights.size());
    Json.put(about, "copied_bytes", weights.copied() > 0 ? weights.copied() : null);
    Json.put(state, "bundle", about);
    long available = host.availableMemory();
    boolean isLow = available >= 0 && available < weights.size() + MEMORY_BESIDE_WEIGHTS;
    Json.put(state, "low_memory", loaded == null && isLow ? available : null);
  }

  /** Cancels the verification and prevents restarts. */
  void end() {
    end.cancel();
    verifier.shutdown();
  }

  /** Hashes the weights while the model is already usable. */
  private final class VerifyTask implements Runnable {
    private final File file;

    VerifyTask(File file) {
      this.file = file;
    }

    @Override
    public void run() {
      EngineException found = null;
      try {
        weights.verify(file, new VerifyProgress(), end);
      } catch (EngineException e) {
        found = e;
      }
      if (end.isCancelled()) {
        return;
      }
      synchronized (LoadedModel.this) {
        verified = found == null ? VERIFIED : DAMAGED;
        problem = found == null ? problem : found;
      }
      watcher.onVerified(found);
    }
  }

  /** Publishes the verification's progress. */
  private final class VerifyProgress implements Progress {
    @Override
    public void onProgress(String stage, long done, long total) {
      host.toPage(
          Json.object(
              "event", "progress", "kind", Job.VERIFY, "stage", stage, "done", done,
              "total", total));
    }
  }
}
