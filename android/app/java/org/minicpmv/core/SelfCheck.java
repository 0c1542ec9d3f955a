package org.minicpmv.core;

import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Protocol.Field;
import org.minicpmv.core.Protocol.Op;

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
  JSONArray run(LoadedModel model) throws EngineException {
    try {
      model.verify(listener, cancel);
      add("weights", true, model.weights().size() + " bytes");
    } catch (EngineException e) {
      failed("weights", e);
    }
    try {
      JSONObject loaded = manager.ready(settings, model.lender(listener, cancel), listener);
      JSONObject hello = manager.hello();
      String version = hello.optString(Field.TOOLKIT_VERSION);
      add("engine", true, version + ", " + hello.optString(Field.TARGET));
      JSONArray refused = hello.optJSONArray(Field.REFUSED);
      String not = refused == null || refused.length() == 0 ? "" : " " + refused;
      String features = hello.opt(Field.CPU_FEATURES) + not;
      add("processor", true, hello.optString(Field.CPU) + " " + features);
      add("load", true, loaded.optLong(Field.LOAD_MS) + " ms");
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
        targets == null ? null : targets.optJSONObject(hello.optString(Field.TARGET));
    String wanted = target == null ? "none" : target.optString("program_id");
    String found = hello.optString(Field.PROGRAM_ID);
    add("program", found.equals(wanted), found.substring(0, Math.min(found.length(), 16)));
  }

  /** Runs the bundle's golden prompts. */
  private void checkAnswers() throws EngineException {
    JSONObject line;
    try {
      line = manager.request(Op.SELF_CHECK, new JSONObject(), listener);
    } catch (EngineException e) {
      failed("answer", e);
      return;
    }
    for (JSONObject check : Json.objects(line.optJSONArray(Field.CHECKS))) {
      String answer = check.optString(Field.QUESTION) + " " + check.optString(Field.TEXT);
      boolean passed = check.optBoolean(Field.PASSED);
      String expected = passed ? "" : " (expected: " + check.optString(Field.EXPECTED) + ")";
      add("answer", passed, answer + expected);
    }
    add("memory", true, (line.optLong(Field.PEAK_RSS_BYTES) >> 20) + " MiB");
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
