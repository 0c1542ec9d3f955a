package org.minicpmv.core;

import java.io.IOException;
import java.io.InputStream;
import java.util.List;
import org.json.JSONObject;

/** The platform services that the assistant needs. */
public interface Host extends BundleSource {
  /** Sends an event to the page, if there is one. */
  void toPage(JSONObject event);

  /** Keeps the system from stopping the app while it is busy. */
  void setBusy(boolean busy);

  /**
   * Asks for what an answer needs while the app is in the background; called when the user has
   * asked a question, while its answer starts.
   */
  void prepareBackground();

  /** Lets the user choose a picture, which arrives at {@link Assistant#addPicture}. */
  void choosePicture(boolean camera);

  /**
   * Lets the user choose the weights, which arrive at {@link Assistant#importWeights}.
   *
   * @param isKept whether the user wants them to be used where they are
   */
  void chooseWeights(boolean isKept);

  /**
   * Opens a file again that is used where it is.
   *
   * @throws EngineException `weights_gone`, `weights_locked`
   */
  LentFile openLent(String address) throws EngineException;

  /** Gives up what {@link #openLent} needs for a file. */
  void giveBack(String address);

  void copy(String text);

  /** Lets the user choose where to save a text. */
  void save(String name, String text);

  /**
   * What this phone can do besides, for `can` of the page's state: `share`, `speak`, `dictate`, `back`. The
   * methods of these names are called only then.
   */
  List<String> abilities();

  /** Lets the user send a text to another app. */
  void share(String text);

  /**
   * Reads a text aloud in place of the one before; null only ends that. Reports to {@link
   * Assistant#setSpeaking}.
   */
  void speak(String text);

  /** Lets the user dictate; the text arrives at {@link Assistant#addDictated}. */
  void dictate();

  /** Tells the system whether the page has something to close when the user goes back. */
  void setTakesBack(boolean takesBack);

  /** Leaves the app. */
  void leave();

  /** The system's language code, for example `zh`. */
  String language();

  /** Whether the system's theme is dark. */
  boolean isDark();

  /** Gives what surrounds the page the page's theme; called with every state. */
  void setDark(boolean isDark);

  /** Facts about the app and the phone, for the page and for bug reports. */
  JSONObject about();

  /** Available memory, bytes; -1 if unknown. */
  long availableMemory();

  /** Temperature of the phone, in degrees Celsius; NaN if unknown. */
  double temperature();

  /** Opens one of the toolkit's `configs` that are packaged in the app. */
  InputStream configFile(String name) throws IOException;

  PictureDecoder decoder();
}
