package org.minicpmv.core;

import org.json.JSONArray;
import org.json.JSONObject;

/**
 * A conversation that another program asks the model to continue.
 *
 * <p>The results arrive on the worker thread: tokens, if the options ask for them, and pieces of
 * text, each after its tokens; then exactly one of {@link #onDone} and
 * {@link #onFailed}.
 */
public abstract class ServedChat {
  /** Cancels the answer; see {@link Assistant#cancel}. */
  public final CancelToken cancel = new CancelToken();

  final JSONArray messages;
  final byte[] picture;
  final boolean overviewOnly;
  final JSONObject options;

  /**
   * @param messages in the engine's format
   * @param picture a picture's file, which is not decoded yet; null: none
   * @param overviewOnly whether a model that cuts pictures sees only the picture's overview
   * @param options other fields of the engine's request
   */
  protected ServedChat(
      JSONArray messages, byte[] picture, boolean overviewOnly, JSONObject options) {
    this.messages = messages;
    this.picture = picture;
    this.overviewOnly = overviewOnly;
    this.options = options;
  }

  public abstract void onText(String text);

  /** @param line the engine's event */
  public abstract void onToken(JSONObject line);

  /** @param line the engine's reply */
  public abstract void onDone(JSONObject line);

  public abstract void onFailed(EngineException e);
}
