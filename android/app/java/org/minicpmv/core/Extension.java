package org.minicpmv.core;

import java.io.Closeable;
import org.json.JSONObject;

/** A part of the app that only some variants have. Methods may be called from any thread. */
public interface Extension extends Closeable {
  /** The name of its command, of the ability, and of its field in the page's state. */
  String name();

  /** Handles its command. */
  void receive(JSONObject command) throws EngineException;

  /** Returns its part of the page's state. */
  JSONObject state();

  /** The app is visible. */
  void foreground();

  @Override
  void close();
}
