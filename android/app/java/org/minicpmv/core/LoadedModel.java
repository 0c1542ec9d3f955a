package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.json.JSONObject;

/**
 * The bundle, its weights and the engine: found, verified, loaded, freed.
 *
 * <p>What takes long is called from one thread, except that weights are hashed on another; the rest
 * comes from any thread.
 */
final class Model {
  private static final String UNKNOWN = "no";
  private static final String RUNNING = "running";
  private static final String VERIFIED = "yes";
  private static final String DAMAGED = "failed";
  private static final long MEMORY_BESIDE_WEIGHTS = 300L << 20; // bytes: cache, buffers, the page

  /** Hears what was found out in the background. */
  interface Watcher {
    /** Weights are what they should be, or not. */
    void onVerified(EngineException problem);
  }

  private final Host host;
  private final Places places;
  private final Log log;
  private final Watcher watcher;
  private final RestartPolicy policy = new RestartPolicy();
  private final ExecutorService verifier = Executors.newSingleThreadExecutor();
  private final Cancel end = new Cancel();

  private BundleFiles bundle; // these four stand once `read` has run
  private Settings settings;
  private Weights weights;
  private EngineKeeper keeper;
  private EngineException problem; // why nothing can be asked; null: all is well
  private JSONObject loaded; // what the engine said of the bundle; null: not loaded
  private String verified = UNKNOWN;

  Model(Host host, Places places, Log log, Watcher watcher) {
    this.host = host;
    this.places = places;
    this.log = log;
    this.watcher = watcher;
  }

  /** Reads what the app carries. */
  void read() throws EngineException {
    BundleFiles files = new BundleFiles(new File(places.files, "bundle"), host);
    JSONObject ranges = Settings.readRanges(host);
    synchronized (this) {
      bundle = files;
      settings =
          new Settings(new File(places.files, "settings.json"), files.generation, ranges, log);
      weights = new Weights(files.folder, places.outsideWeights, files.record(Weights.NAME));
      if (keeper == null) {
        keeper = new EngineKeeper(places.engine, files.folder, places.cache, log);
      }
      problem = null;
      verified = verified.equals(DAMAGED) ? UNKNOWN : verified;
    }
  }

  /** Weights that the app carries are copied out, so that the engine can map them. */
  void takeEmbedded(Progress progress, Cancel cancel) throws EngineException {
    try {
      weights.find();
      return;
    } catch (EngineException missing) {
      try (InputStream source = host.bundleFile(Weights.NAME)) {
        weights.importFrom(source, -1, progress, cancel);
      } catch (IOException e) {
        throw missing; // the app carries none
      } catch (EngineException e) {
        throw e.code().equals(EngineException.CANCELLED) ? missing : e;
      }
    }
  }

  /** Copies weights into the app. */
  void importWeights(InputStream source, long length, Progress progress, Cancel cancel)
      throws EngineException {
    weights.requireRoom(length); // else the model stays as it is
    keeper.unload(); // it has the file mapped that goes
    weights.importFrom(source, length, progress, cancel);
    synchronized (this) {
      problem = null;
      verified = UNKNOWN;
    }
    policy.forgive();
  }

  /** Finds the weights, loads them, and has them verified in the background. */
  void load(Engine.Listener listener) throws EngineException {
    synchronized (this) {
      if (verified.equals(DAMAGED) && problem != null) {
        throw problem;
      }
    }
    File file = weights.find();
    JSONObject said = keeper.ready(settings, listener);
    synchronized (this) {
      problem = null;
      loaded = said;
      if (weights.isVerified(file)) {
        verified = VERIFIED;
      } else if (!verified.equals(RUNNING) && !end.isWished()) {
        verified = RUNNING;
        verifier.execute(new Verifying(file));
      }
    }
  }

  /** Frees the engine's memory. */
  void unload() {
    EngineKeeper running;
    synchronized (this) {
      loaded = null;
      running = keeper;
    }
    if (running != null) {
      running.unload();
    }
  }

  /** Returns what checks everything. */
  SelfCheck selfCheck(Engine.Listener listener, Cancel cancel) {
    return new SelfCheck(keeper, settings, bundle, listener, cancel);
  }

  /** Keeps in mind what stands in the way; says whether to start an engine again that died. */
  boolean note(EngineException e) {
    boolean again = e.isDeath() && policy.died(System.currentTimeMillis()) && !end.isWished();
    synchronized (this) {
      loaded = e.isDeath() ? null : loaded;
      if (loaded == null && !again && !e.code().equals(EngineException.CANCELLED)) {
        problem = e;
      }
    }
    return again;
  }

  /** The user asked for another try. */
  void forgive() {
    policy.forgive();
  }

  /** Ends what is under way in the engine. */
  void cancel() {
    EngineKeeper running = keeper();
    if (running != null) {
      running.cancel();
    }
  }

  /** Whether nothing but rest keeps it from answering. */
  synchronized boolean isAsleep() {
    return keeper != null && !keeper.isReady() && problem == null;
  }

  /** Returns null until {@link #read} has run, as the next two do. */
  synchronized Settings settings() {
    return settings;
  }

  synchronized EngineKeeper keeper() {
    return keeper;
  }

  synchronized Weights weights() {
    return weights;
  }

  /** Adds to the page's state what is known here. */
  synchronized void describe(JSONObject state) {
    Json.put(state, "model", loaded);
    Json.put(state, "verified", verified);
    Json.put(state, "settings", settings == null ? null : settings.all());
    Json.put(state, "ranges", settings == null ? null : settings.ranges());
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
    Json.put(state, "low_memory", loaded == null && isLow ? available : null);
  }

  /** Nothing begins any more. */
  void end() {
    end.wish();
    verifier.shutdown();
  }

  /** Hashes the weights while the user may already ask. */
  private final class Verifying implements Runnable {
    private final File file;

    Verifying(File file) {
      this.file = file;
    }

    @Override
    public void run() {
      EngineException found = null;
      try {
        weights.verify(file, new Announcing(), end);
      } catch (EngineException e) {
        found = e;
      }
      if (end.isWished()) {
        return;
      }
      synchronized (Model.this) {
        verified = found == null ? VERIFIED : DAMAGED;
        problem = found == null ? problem : found;
      }
      watcher.onVerified(found);
    }
  }

  /** Tells the page how far the hash is. */
  private final class Announcing implements Progress {
    @Override
    public void onProgress(String stage, long done, long total) {
      host.toPage(
          Json.object(
              "event", "progress", "kind", Job.VERIFY, "stage", stage, "done", done,
              "total", total));
    }
  }
}
