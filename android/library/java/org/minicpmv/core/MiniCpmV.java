package org.minicpmv.core;

import android.content.Context;
import android.graphics.Bitmap;
import java.io.BufferedOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import org.jetbrains.annotations.NotNull;
import org.jetbrains.annotations.Nullable;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Field;
import org.minicpmv.core.Protocol.Op;
import org.minicpmv.system.PowerWatch;

/**
 * A model that answers questions about pictures, on this phone.
 *
 * <pre>{@code
 * try (MiniCpmV model = MiniCpmV.open(context, new File(context.getFilesDir(), "weights"), listener)) {
 *   Answer answer = model.chat(bitmap, Arrays.asList("What is in the picture?"), listener);
 * }
 * }</pre>
 *
 * <p>The engine runs in a process of its own, which needs native libraries as files: the app's
 * build file must say {@code android.packaging.jniLibs.useLegacyPackaging = true}. If the engine
 * dies, the call that waits for it throws, and the next one starts it again. While the phone is hot
 * or saves power, half the threads compute.
 *
 * <p>All methods block, some for minutes: call them on a background thread. Calls from several
 * threads run one after another; {@link #cancel} and {@link #close} interrupt them.
 */
public final class MiniCpmV implements AutoCloseable {
  private static final String ENGINE = "libminicpmv.so";
  private static final String ASSETS = "minicpmv/";
  private static final long TIMEOUT_SECONDS = 600; // a slow phone takes minutes for a picture
  private static final int MAX_NEW_TOKENS = 1024;

  /** Receives an answer while it is made. Called on the thread that called the model. */
  public interface Listener {
    /** The next piece of the answer. */
    void onText(@NotNull String piece);

    /**
     * The progress of a long step.
     *
     * @param stage `verify` (the weights, once), `encode` (a picture) or `prefill` (the question)
     */
    void onProgress(@NotNull String stage, long done, long total);
  }

  private final File engine;
  private final File cache;
  private final BundleFiles bundle;
  private final JSONObject sampling;
  private volatile Engine running; // null: not started, or dead
  private volatile CancelToken cancel = new CancelToken(); // of the answer being made
  private volatile boolean closed;
  private final PowerWatch watch;
  private boolean sparing; // guarded by `watching`
  private final Object watching = new Object(); // not this: `chat` holds that for minutes
  private boolean greedy;
  private int maxNewTokens;

  private MiniCpmV(Context context, File engine, BundleFiles bundle) {
    File cache = context.getCacheDir();
    this.engine = engine;
    this.cache = cache;
    this.bundle = bundle;
    JSONObject settings = bundle.defaults().optJSONObject("settings");
    JSONObject sample = settings == null ? null : settings.optJSONObject("sample");
    sampling = sample == null ? new JSONObject() : sample;
    greedy = settings == null || !settings.optBoolean("sampling");
    maxNewTokens =
        settings == null ? MAX_NEW_TOKENS : settings.optInt("max_new_tokens", MAX_NEW_TOKENS);
    watch = PowerWatch.start(context, new Spare());
  }

  /**
   * Starts the engine and loads the model.
   *
   * @param weights `weights.safetensors` of the bundle that this library was built from, or a
   *     folder with it. It is used where it is, so it must stay. Its SHA-256 is checked once.
   * @param listener receives the progress of that check; may be null
   * @throws EngineException `no_weights`, `wrong_weights` or `damaged_weights`: they are missing,
   *     or not this library's; `no_engine`: the engine cannot be started; other codes: see {@link
   *     EngineException}
   */
  @NotNull
  public static MiniCpmV open(
      @NotNull Context context, @NotNull File weights, @Nullable Listener listener)
      throws EngineException {
    File engine = new File(context.getApplicationInfo().nativeLibraryDir, ENGINE);
    if (!engine.isFile()) {
      throw new EngineException(
          EngineException.NO_ENGINE,
          engine + " does not exist; the app's build file needs "
              + "android.packaging.jniLibs.useLegacyPackaging = true");
    }
    File folder = new File(context.getNoBackupFilesDir(), "minicpmv");
    BundleFiles bundle = new BundleFiles(folder, new Assets(context));
    File file = weights.isDirectory() ? new File(weights, Weights.NAME) : weights;
    Weights found =
        new Weights(folder, Collections.singletonList(file), bundle.record(Weights.NAME));
    File used = found.find();
    MiniCpmV model = new MiniCpmV(context, engine, bundle);
    boolean isOpen = false;
    try {
      if (!found.isVerified(used)) {
        found.verify(used, model.new Events(listener), model.cancel);
      }
      model.ready();
      isOpen = true;
    } finally {
      if (!isOpen) {
        model.close();
      }
    }
    return model;
  }

  /** Chooses the likeliest token always, or samples; the default is the model's own. */
  public synchronized void setGreedy(boolean greedy) {
    this.greedy = greedy;
  }

  /** Limits the length of an answer, in tokens; the default is the model's own. */
  public synchronized void setMaxNewTokens(int maxNewTokens) {
    if (maxNewTokens < 1) {
      throw new IllegalArgumentException("maxNewTokens: expected at least 1, not " + maxNewTokens);
    }
    this.maxNewTokens = maxNewTokens;
  }

  /**
   * Answers the last turn of a conversation.
   *
   * <p>What the last call had in common with this one is not computed again.
   *
   * @param picture belongs to the first turn; null: the conversation has none
   * @param turns of user and model in alternation; the first and the last are the user's
   * @param listener may be null
   * @throws EngineException `cancelled` if that came before the answer's first token;
   *     `prompt_too_long`; `invalid_request` for turns that do not alternate; other codes: see
   *     {@link EngineException}
   */
  @NotNull
  public synchronized Answer chat(
      @Nullable Bitmap picture, @NotNull List<@NotNull String> turns, @Nullable Listener listener)
      throws EngineException {
    CancelToken token = new CancelToken();
    cancel = token;
    Engine ready = ready();
    Events events = new Events(listener);
    try {
      String image = picture == null ? null : encode(picture, ready, events, token);
      token.check();
      JSONObject fields =
          Json.object(
              Field.MESSAGES, messages(turns),
              Field.IMAGE, image,
              Field.MAX_NEW_TOKENS, maxNewTokens);
      for (Iterator<String> names = sampling.keys(); !greedy && names.hasNext(); ) {
        String name = names.next();
        Json.put(fields, name, sampling.opt(name));
      }
      JSONObject done = ready.request(Op.CHAT, fields, events);
      return new Answer(
          done.optString(Field.TEXT), done.optString(Field.STOP));
    } catch (EngineException e) {
      throw lost(e);
    }
  }

  /** Ends the answer that is being made; `chat` returns what there is. From any thread. */
  public void cancel() {
    cancel.cancel();
    Engine now = running;
    if (now != null) {
      now.cancel();
    }
  }

  /** Ends the engine and what it does; later calls throw. From any thread. */
  @Override
  public void close() {
    synchronized (watching) {
      if (!closed) {
        watch.close();
      }
      closed = true;
    }
    cancel();
    Engine now = running;
    if (now != null) {
      now.close();
    }
  }

  /** Returns the engine with the model loaded; starts it if necessary. */
  private synchronized Engine ready() throws EngineException {
    Engine now = running;
    if (now != null) {
      return now;
    }
    if (closed) {
      throw new EngineException(EngineException.DIED, "the model is closed");
    }
    List<String> command = Collections.singletonList(engine.getPath());
    now = new Engine(command, 0, new File(cache, "minicpmv.stderr"), TIMEOUT_SECONDS);
    synchronized (watching) {
      running = now;
      if (sparing) {
        now.setSparing(true);
      }
    }
    JSONObject load =
        Json.object(
            Field.BUNDLE, bundle.folder.getPath(),
            Field.WINDOW, bundle.defaults().opt("window"));
    try {
      now.request(Op.LOAD, load, new Events(null));
    } catch (EngineException e) {
      now.close();
      running = null;
      throw e;
    }
    if (closed) { // meanwhile
      now.close();
    }
    return now;
  }

  private String encode(Bitmap picture, Engine ready, Events events, CancelToken token)
      throws EngineException {
    File pixels = new File(cache, "minicpmv.pixels");
    try {
      try (OutputStream target = new BufferedOutputStream(new FileOutputStream(pixels))) {
        BitmapPixels.write(picture, target, token);
      } catch (IOException e) {
        throw new EngineException(
            EngineException.FILE_ERROR, "the picture cannot be stored: " + e.getMessage(), e);
      }
      JSONObject fields = Json.object(Field.PATH, pixels.getPath());
      return ready.request(Op.IMAGE, fields, events).optString(Field.IMAGE);
    } finally {
      pixels.delete();
    }
  }

  /** Forgets an engine that is gone, so that the next call starts another. */
  private EngineException lost(EngineException e) {
    Engine now = running;
    if (e.isEngineLost() && now != null && !closed) {
      now.close();
      running = null;
    }
    return e;
  }

  private static JSONArray messages(List<String> turns) {
    JSONArray messages = new JSONArray();
    for (String turn : turns) {
      String role = messages.length() % 2 == 0 ? "user" : "assistant";
      messages.put(
          Json.object(Field.ROLE, role, Field.CONTENT, turn));
    }
    return messages;
  }

  /** Saves power with the engine that runs, and the next one. */
  private final class Spare implements Sparing {
    @Override
    public void setSparing(boolean isSparing) {
      synchronized (watching) {
        Engine now = running;
        if (now != null && sparing != isSparing) {
          now.setSparing(isSparing);
        }
        sparing = isSparing;
      }
    }
  }

  /** Passes events on, and repeats a cancel that came before its request. */
  private final class Events implements Engine.Listener {
    private final Listener listener; // null: nobody listens
    private boolean repeated;

    Events(Listener listener) {
      this.listener = listener;
    }

    @Override
    public void onText(String text) {
      repeatCancel();
      if (listener != null) {
        listener.onText(text);
      }
    }

    @Override
    public void onToken(JSONObject line) {
      repeatCancel(); // the library asks for none
    }

    @Override
    public void onProgress(String stage, long done, long total) {
      repeatCancel();
      if (listener != null) {
        listener.onProgress(stage, done, total);
      }
    }

    @Override
    public void onProgress(String stage, long done, long total, JSONArray grid) {
      onProgress(stage, done, total);
    }

    private void repeatCancel() {
      if (cancel.isCancelled() && !repeated) {
        repeated = true;
        cancel();
      }
    }
  }

  /** The bundle's files in the library's assets. */
  private static final class Assets implements BundleSource {
    private final Context context;

    Assets(Context context) {
      this.context = context;
    }

    @Override
    public InputStream bundleFile(String name) throws IOException {
      return context.getAssets().open(ASSETS + name);
    }
  }
}
