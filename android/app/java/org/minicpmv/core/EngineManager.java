package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.util.Iterator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Field;
import org.minicpmv.core.Protocol.Op;

/**
 * Starts one engine on demand, loads the bundle into it, and stops it when it is not needed.
 *
 * <p>All methods except {@link #cancel} and {@link #setSparing} are called from one thread.
 */
final class EngineManager {
  private static final long TIMEOUT_SECONDS = 600; // a slow phone takes minutes for a picture

  private static final String PIXELS = "picture.pixels";

  /** Opens the weights for an engine that loads them. */
  interface Lender {
    /** Returns the file to use; null: the bundle's folder has it. */
    LentFile lend() throws EngineException;
  }

  private final List<String> command;
  private final File bundle;
  private final File cache;
  private final Log log;
  private final Map<File, String> names = new HashMap<>(); // embeddings to the engine's name
  private volatile Engine engine;
  private volatile JSONObject loaded; // the reply to `load`; null: no bundle is loaded
  private int window;
  private int threads;
  private boolean sparing; // guarded by this

  EngineManager(List<String> command, File bundle, File cache, Log log) {
    this.command = command;
    this.bundle = bundle;
    this.cache = cache;
    this.log = log;
  }

  /** Returns the running engine's description of itself; null if there is none. */
  JSONObject hello() {
    Engine running = engine;
    return running == null ? null : running.hello();
  }

  boolean isReady() {
    return engine != null && loaded != null;
  }

  /** Starts the engine and loads the bundle if necessary; returns the reply to `load`. */
  JSONObject ready(Settings settings, Lender lender, Engine.Listener listener)
      throws EngineException {
    if (engine != null && threads != settings.threads()) {
      unload();
    }
    try {
      if (engine == null) {
        threads = settings.threads();
        engine = new Engine(command, threads, new File(cache, "engine.stderr"), TIMEOUT_SECONDS);
        log.add("engine started: " + engine.hello());
        synchronized (this) {
          if (sparing) {
            spare();
          }
        }
      }
      if (loaded == null || window != settings.window()) {
        listener.onProgress("load", 0, 0);
        loaded = null;
        window = settings.window();
        loaded = load(lender, listener);
        log.add("bundle loaded: " + loaded);
      }
      return loaded;
    } catch (EngineException e) {
      throw handleFailure(e);
    }
  }

  private JSONObject load(Lender lender, Engine.Listener listener) throws EngineException {
    JSONObject fields = Json.object(Field.BUNDLE, bundle.getPath(), Field.WINDOW, window);
    if (engine.hello().has(Field.KINDS)) { // engines before 0.2.0 do not know the next field
      Json.put(fields, Field.KINDS_FILE, new File(cache, "kinds").getPath());
    }
    LentFile weights = lender.lend();
    try {
      return engine.load(fields, weights, listener);
    } finally {
      if (weights != null) {
        FileTools.closeQuietly(weights); // a mapped file need not stay open
      }
    }
  }

  /** Sends a request to the running engine. */
  JSONObject request(String op, JSONObject fields, Engine.Listener listener)
      throws EngineException {
    Engine running = engine;
    if (running == null) {
      throw new EngineException(EngineException.DIED, "the engine is not running");
    }
    try {
      return running.request(op, fields, listener);
    } catch (EngineException e) {
      throw handleFailure(e);
    }
  }

  /**
   * Answers a conversation.
   *
   * @param messages in the protocol's format
   * @param picture the id of the picture in the conversation, or null; cut as the settings say now
   * @param speed receives the picture's encoding time
   */
  JSONObject chat(
      JSONArray messages,
      String picture,
      Pictures pictures,
      Settings settings,
      Engine.Listener listener,
      CancelToken cancel,
      JSONObject speed)
      throws EngineException {
    int maxSlices = Math.min(settings.maxSlices(), mostSlices());
    String name = picture == null ? null : names.get(pictures.embeddings(picture, maxSlices));
    boolean isRemembered = name != null;
    if (picture != null && name == null) {
      name = encode(picture, maxSlices, pictures, listener, cancel, speed);
    }
    cancel.check();
    JSONObject sampling = settings.sampling();
    try {
      return request(Op.CHAT, chatFields(messages, name, sampling), listener);
    } catch (EngineException e) {
      if (!isRemembered || !e.code().equals(EngineException.UNKNOWN_PICTURE)) {
        throw e;
      }
      name = encode(picture, maxSlices, pictures, listener, cancel, speed); // it was evicted
      return request(Op.CHAT, chatFields(messages, name, sampling), listener);
    }
  }

  /** Answers another program. Its picture leaves no file behind. */
  JSONObject chat(
      ServedChat served, PictureDecoder decoder, Settings settings, Engine.Listener listener)
      throws EngineException {
    String name = null;
    if (served.picture != null) {
      int most = Math.min(served.overviewOnly ? 1 : settings.maxSlices(), mostSlices());
      name = encode(served.picture, most, decoder, listener, served.cancel);
    }
    served.cancel.check();
    return request(Op.CHAT, chatFields(served.messages, name, served.options), listener);
  }

  /** Cancels the running request. */
  void cancel() {
    Engine running = engine;
    if (running != null) {
      running.cancel();
    }
  }

  /** See {@link Assistant#setSparing}. */
  synchronized void setSparing(boolean isSparing) {
    if (sparing != isSparing) {
      sparing = isSparing;
      spare();
    }
  }

  /** Sets how many threads compute, in the order of changes. */
  private synchronized void spare() {
    Engine running = engine;
    if (running != null) {
      int all = running.hello().optInt(Field.THREADS);
      int used = running.setSparing(sparing);
      if (all > 1) {
        log.add("engine: " + used + " of " + all + " threads compute");
      }
    }
  }

  /** Stops the engine to free its memory. */
  void unload() {
    Engine running = engine;
    engine = null;
    loaded = null;
    names.clear();
    if (running != null) {
      running.close();
      log.add("engine stopped");
    }
  }

  /**
   * Has the engine encode a picture.
   *
   * @param pixels the picture's file, decoded
   * @param maxSlices the most slices to cut it into; 0: the model cuts none
   */
  JSONObject encode(File pixels, int maxSlices, Engine.Listener listener) throws EngineException {
    JSONObject fields =
        Json.object(
            Field.PATH, pixels.getPath(),
            Field.MAX_SLICES, maxSlices == 0 ? null : (Object) maxSlices);
    return request(Op.IMAGE, fields, listener);
  }

  private String encode(
      byte[] picture,
      int maxSlices,
      PictureDecoder decoder,
      Engine.Listener listener,
      CancelToken cancel)
      throws EngineException {
    File file = new File(cache, "served.picture");
    File pixels = new File(cache, PIXELS);
    try {
      Files.write(file.toPath(), picture);
      Pictures.decode(decoder, file, pixels, listener, cancel);
      cancel.check();
      return encode(pixels, maxSlices, listener).optString(Field.IMAGE);
    } catch (IOException e) {
      throw FileTools.failure(EngineException.FILE_ERROR, "the picture cannot be kept", e);
    } finally {
      file.delete();
      pixels.delete();
    }
  }

  /** Returns the most slices that the model cuts a picture into; 0: it cuts none. */
  int mostSlices() {
    return loaded.optInt(Field.MAX_SLICES);
  }

  /** Sends a picture to the engine: its saved embeddings, or else its pixels. */
  private String encode(
      String picture,
      int maxSlices,
      Pictures pictures,
      Engine.Listener listener,
      CancelToken cancel,
      JSONObject speed)
      throws EngineException {
    File embeddings = pictures.embeddings(picture, maxSlices);
    String name = restore(embeddings, listener);
    if (name == null) {
      File pixels = new File(cache, PIXELS);
      try {
        pictures.pixels(picture, pixels, listener, cancel);
        cancel.check();
        JSONObject line = encode(pixels, maxSlices, listener);
        Json.put(speed, "encode_ms", line.optDouble(Field.ENCODE_MS));
        name = line.optString(Field.IMAGE);
      } finally {
        pixels.delete();
      }
      keep(name, embeddings, listener);
    }
    names.put(embeddings, name);
    return name;
  }

  /** Returns null if there are no embeddings, or if they come from another program or weights. */
  private String restore(File embeddings, Engine.Listener listener) throws EngineException {
    if (!embeddings.isFile()) {
      return null;
    }
    try {
      JSONObject fields = Json.object(Field.PATH, embeddings.getPath());
      return request(Op.RESTORE_IMAGE, fields, listener).optString(Field.IMAGE);
    } catch (EngineException e) {
      if (e.isEngineLost()) {
        throw e;
      }
      embeddings.delete();
      return null;
    }
  }

  /** Saves the embeddings for the next start: encoding a picture takes long. */
  private void keep(String name, File embeddings, Engine.Listener listener)
      throws EngineException {
    try {
      JSONObject fields = Json.object(Field.IMAGE, name, Field.PATH, embeddings.getPath());
      request(Op.SAVE_IMAGE, fields, listener);
    } catch (EngineException e) {
      if (e.isEngineLost()) {
        throw e; // other errors are harmless: the picture will be encoded again
      }
    }
  }

  private EngineException handleFailure(EngineException e) {
    log.add("engine: " + e.code() + ": " + e.getMessage());
    if (e.isEngineLost()) {
      unload();
    }
    return e;
  }

  private static JSONObject chatFields(JSONArray messages, String image, JSONObject sampling) {
    JSONObject fields = Json.object(Field.MESSAGES, messages, Field.IMAGE, image);
    for (Iterator<String> keys = sampling.keys(); keys.hasNext(); ) {
      String key = keys.next();
      Json.put(fields, key, sampling.opt(key));
    }
    return fields;
  }
}
