package org.minicpmv.core;

import java.io.BufferedOutputStream;
import java.io.File;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.util.Random;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Field;
import org.minicpmv.core.Protocol.Op;

/** Measures what a question about a picture takes on this phone, as `runtime/web/benchmark.py` does. */
final class Benchmark {
  static final String QUESTION =
      "Describe this picture in detail: what is in it, where each thing is, which colours it has, "
          + "what stands in the background, and what may happen next. Write several sentences.";
  static final int SIDE = 512; // pixels; the engine scales it
  static final int NEW_TOKENS = 64;
  private static final int CHANNELS = 3;

  private final EngineManager manager;
  private final File cache;
  private final Engine.Listener listener;
  private final CancelToken cancel;

  Benchmark(EngineManager manager, File cache, Engine.Listener listener, CancelToken cancel) {
    this.manager = manager;
    this.cache = cache;
    this.listener = listener;
    this.cancel = cancel;
  }

  /** Runs it once; the model is loaded. */
  JSONObject run(boolean sees) throws EngineException {
    JSONObject results = new JSONObject();
    String image = null;
    if (sees) {
      JSONObject line = encode();
      Json.put(results, "encode_ms", line.optDouble(Field.ENCODE_MS));
      image = line.optString(Field.IMAGE);
    }
    cancel.check();
    manager.request(Op.RESET, new JSONObject(), listener); // nothing of the prompt is cached
    JSONObject fields =
        Json.object(
            Field.MESSAGES,
                new JSONArray().put(Json.object(Field.ROLE, "user", Field.CONTENT, QUESTION)),
            Field.IMAGE, image,
            Field.MAX_NEW_TOKENS, NEW_TOKENS);
    JSONObject line = manager.request(Op.CHAT, fields, listener);
    cancel.check();
    JSONObject statistics = line.optJSONObject(Field.STATISTICS);
    for (String name :
        new String[] {
          Field.PROMPT_TOKENS,
          Field.PREFILL_TOK_S,
          Field.GENERATED_TOKENS,
          Field.DECODE_TOK_S,
          Field.PEAK_RSS_BYTES
        }) {
      Json.put(results, name, statistics == null ? null : statistics.opt(name));
    }
    return results;
  }

  /** Encodes noise as one image; the engine cannot remember it from an earlier run. */
  private JSONObject encode() throws EngineException {
    File pixels = new File(cache, "benchmark.pixels");
    try (OutputStream stream =
        new BufferedOutputStream(Files.newOutputStream(pixels.toPath()))) {
      new PictureStrips(SIDE, SIDE, Orientation.UPRIGHT, Integer.MAX_VALUE).writeHeader(stream);
      byte[] noise = new byte[SIDE * SIDE * CHANNELS];
      new Random().nextBytes(noise);
      stream.write(noise);
    } catch (IOException e) {
      pixels.delete();
      throw FileTools.failure(EngineException.FILE_ERROR, "the test picture", e);
    }
    try {
      return manager.encode(pixels, Math.min(1, manager.mostSlices()), listener);
    } finally {
      pixels.delete();
    }
  }
}
