package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;
import java.util.List;
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
  // What becomes of good weights that cannot be opened again, given to the engine, or mapped by it.
  private static final List<String> UNUSABLE =
      Arrays.asList(
          EngineException.WEIGHTS_GONE,
          EngineException.WEIGHTS_LOCKED,
          EngineException.FILE_ERROR,
          EngineException.INVALID_BUNDLE);
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
    if (weights.lent.address() != null) {
      return; // the user chose others
    }
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

  /** Takes the weights that the user chose; see {@link Assistant#importWeights}. */
  void importWeights(
      LentFile source, boolean isKept, Engine.Listener listener, CancelToken cancel)
      throws EngineException {
    String before = weights.lent.address();
    try {
      if (!isKept || !source.isUsable() || !use(source, listener, cancel)) {
        copy(source, listener, cancel);
      }
    } finally {
      String now = weights.lent.address();
      for (String address : new String[] {before, source.address()}) {
        if (address != null && !address.equals(now)) {
          host.giveBack(address);
        }
      }
    }
  }

  /** Uses weights where they are; returns whether that is possible. */
  private boolean use(LentFile source, Engine.Listener listener, CancelToken cancel)
      throws EngineException {
    weights.lent.verify(source, listener, cancel);
    JSONObject before = weights.lent.record();
    weights.lent.choose(source);
    manager.unload();
    renew();
    try {
      load(listener, cancel); // opens the file once more, as after a restart
    } catch (EngineException e) {
      if (!UNUSABLE.contains(e.code())) {
        throw e;
      }
      log.add(source.name() + " is copied: " + e.code() + ": " + e.getMessage());
      weights.lent.restore(before);
      return false;
    }
    weights.discardCopies();
    return true;
  }

  private void copy(LentFile source, Progress progress, CancelToken cancel)
      throws EngineException {
    weights.requireSpace(source.size()); // before anything changes
    manager.unload(); // it has the old file mapped
    try (InputStream stream = source.read()) {
      weights.importFrom(stream, source.size(), source.address(), progress, cancel);
    } catch (IOException e) {
      throw FileTools.failure(EngineException.FILE_ERROR, "the weights cannot be read", e);
    }
    weights.lent.forget();
    renew();
  }

  /** There are other weights: what was known of those before does not count. */
  private synchronized void renew() {
    problem = null;
    verified = UNKNOWN;
    policy.reset();
  }

  /** Finds the weights, loads them, and verifies them: in the background, if they are the app's. */
  void load(Engine.Listener listener, CancelToken cancel) throws EngineException {
    synchronized (this) {
      if (verified.equals(DAMAGED) && problem != null) {
        throw problem;
      }
    }
    File file = weights.lent.address() == null ? weights.find() : null;
    JSONObject said = manager.ready(settings, lender(listener, cancel), listener);
    synchronized (this) {
      problem = null;
      loaded = said;
      if (file == null || weights.isVerified(file)) {
        verified = VERIFIED;
      } else if (!verified.equals(RUNNING) && !end.isCancelled()) {
        verified = RUNNING;
        verifier.execute(new VerifyTask(file));
      }
    }
  }

  /** Checks the weights' SHA-256. */
  void verify(Progress progress, CancelToken cancel) throws EngineException {
    String address = weights.lent.address();
    if (address == null) {
      weights.verify(weights.find(), progress, cancel);
      return;
    }
    LentFile file = host.openLent(address);
    try {
      weights.lent.verify(file, progress, cancel);
    } finally {
      FileTools.closeQuietly(file);
    }
  }

  /** Opens the weights where they are used in another app's file, and checks them if they changed. */
  EngineManager.Lender lender(Progress progress, CancelToken cancel) {
    return new Borrower(progress, cancel);
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
    Json.put(about, "weights_file", weights.lent.name());
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

  /** Opens the file that the user chose, if there is one. */
  private final class Borrower implements EngineManager.Lender {
    private final Progress progress;
    private final CancelToken cancel;

    Borrower(Progress progress, CancelToken cancel) {
      this.progress = progress;
      this.cancel = cancel;
    }

    @Override
    public LentFile lend() throws EngineException {
      String address = weights.lent.address();
      if (address == null) {
        return null;
      }
      synchronized (LoadedModel.this) {
        loaded = null; // until the engine has them: if they are gone, that is the problem
      }
      LentFile file = host.openLent(address);
      try {
        weights.lent.check(file, progress, cancel);
      } catch (EngineException e) {
        FileTools.closeQuietly(file);
        throw e;
      }
      return file;
    }
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
