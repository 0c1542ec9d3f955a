package org.minicpmv.core;

import java.io.File;
import org.json.JSONArray;
import org.json.JSONObject;

/** Tests on this phone everything that an answer depends on. */
final class SelfCheck {
  private final EngineManager manager;
  private final Settings settings;
  private final BundleFiles bundle;
  private final Engine.Listener listener;
  private final CancelToken cancel;
  private final JSONArray results = new JSONArray();

  SelfCheck(
      EngineManager manager,
      Settings settings,
      BundleFiles bundle,
      Engine.Listener listener,
      CancelToken cancel) {
    this.manager = manager;
    this.settings = settings;
    this.bundle = bundle;
    this.listener = listener;
    this.cancel = cancel;
  }

  /** Runs all checks; the engine is tried even if the weights are wrong. */
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
      JSONObject loaded = manager.ready(settings, listener);
      JSONObject hello = manager.hello();
      add("engine", true, hello.optString("version") + ", " + hello.optString("target"));
      add("processor", true, hello.optString("cpu") + " " + hello.opt("cpu_features"));
      add("load", true, loaded.optLong("load_ms") + " ms");
      checkProgram(hello);
      checkAnswers();
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

  /** Runs the bundle's golden prompts. */
  private void checkAnswers() throws EngineException {
    JSONObject line;
    try {
      line = manager.request("selfcheck", new JSONObject(), listener);
    } catch (EngineException e) {
      failed("answer", e);
      return;
    }
    for (JSONObject check : Json.objects(line.optJSONArray("checks"))) {
      String answer = check.optString("question") + " " + check.optString("text");
      boolean passed = check.optBoolean("passed");
      String expected = passed ? "" : " (expected: " + check.optString("expected") + ")";
      add("answer", passed, answer + expected);
    }
    add("memory", true, (line.optLong("peak_rss_bytes") >> 20) + " MiB");
  }

  private void failed(String name, EngineException e) throws EngineException {
    if (cancel.isCancelled()) {
      throw e;
    }
    add(name, false, e.code() + ": " + e.getMessage());
  }

  private void add(String name, boolean ok, String detail) {
    results.put(Json.object("name", name, "ok", ok, "detail", detail));
  }
}
