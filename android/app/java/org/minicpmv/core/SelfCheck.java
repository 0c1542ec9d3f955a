package org.minicpmv.core;

import java.io.File;
import java.util.Locale;
import org.json.JSONArray;
import org.json.JSONObject;

/** Proves on this very phone that everything that an answer goes through works. */
final class SelfCheck {
  private static final String[] TEXTS = {"What is in the picture?", "图片里有什么？"};
  private static final int ANSWER_TOKENS = 16;

  private final EngineKeeper keeper;
  private final Settings settings;
  private final BundleFiles bundle;
  private final Engine.Listener listener;
  private final Cancel cancel;
  private final JSONArray results = new JSONArray();

  SelfCheck(
      EngineKeeper keeper,
      Settings settings,
      BundleFiles bundle,
      Engine.Listener listener,
      Cancel cancel) {
    this.keeper = keeper;
    this.settings = settings;
    this.bundle = bundle;
    this.listener = listener;
    this.cancel = cancel;
  }

  /** Runs all checks; a failed one does not keep the others from running, a dead engine does. */
  JSONArray run(Weights weights) throws EngineException {
    File file;
    try {
      file = weights.find();
      weights.verify(file, listener, cancel);
      add("weights", true, weights.size() + " bytes");
    } catch (EngineException e) {
      failed("weights", e);
    }
    try {
      JSONObject loaded = keeper.ready(settings, listener);
      JSONObject hello = keeper.hello();
      add("engine", true, hello.optString("version") + ", " + hello.optString("target"));
      add("processor", true, hello.optString("blocks") + ": " + hello.opt("cpu_features"));
      add("load", true, loaded.optLong("load_ms") + " ms");
      checkProgram(hello);
      for (String text : TEXTS) {
        cancel.check();
        checkTokenizer(text);
        checkAnswer(text);
      }
    } catch (EngineException e) {
      failed("engine", e);
    }
    return results;
  }

  private void checkProgram(JSONObject hello) {
    JSONObject targets = bundle.manifest.optJSONObject("targets");
    JSONObject target =
        targets == null ? null : targets.optJSONObject(hello.optString("target"));
    String wanted = target == null ? "none" : target.optString("program_id");
    String found = hello.optString("program_id");
    add("program", found.equals(wanted), found.substring(0, Math.min(found.length(), 16)));
  }

  private void checkTokenizer(String text) throws EngineException {
    try {
      JSONObject ids = keeper.request("tokenize", Json.object("text", text), listener);
      JSONObject back =
          keeper.request("detokenize", Json.object("ids", ids.optJSONArray("ids")), listener);
      add("tokenizer", back.optString("text").trim().equals(text), back.optString("text"));
    } catch (EngineException e) {
      failed("tokenizer", e);
    }
  }

  /** The same question twice: once computed from nothing, once with the cache's help. */
  private void checkAnswer(String text) throws EngineException {
    JSONArray messages = new JSONArray().put(Json.object("role", "user", "content", text));
    JSONObject fields = Json.object("messages", messages, "max_new_tokens", ANSWER_TOKENS);
    try {
      keeper.request("reset", new JSONObject(), listener);
      JSONObject first = keeper.request("chat", fields, listener);
      JSONObject again = keeper.request("chat", fields, listener);
      JSONObject statistics = first.optJSONObject("statistics");
      String speed =
          statistics == null
              ? ""
              : String.format(
                  Locale.ROOT,
                  "%.1f tok/s, %d MiB: ",
                  statistics.optDouble("decode_tok_s", 0),
                  statistics.optLong("peak_rss_bytes") >> 20);
      boolean same = first.optString("text").equals(again.optString("text"));
      add("answer", same && first.optJSONArray("ids") != null, speed + first.optString("text"));
    } catch (EngineException e) {
      failed("answer", e);
    }
  }

  private void failed(String name, EngineException e) throws EngineException {
    if (cancel.isWished()) {
      throw e;
    }
    add(name, false, e.code() + ": " + e.getMessage());
    if (e.isDeath() && !name.equals("engine")) {
      throw e;
    }
  }

  private void add(String name, boolean ok, String detail) {
    results.put(Json.object("name", name, "ok", ok, "detail", detail));
  }
}
