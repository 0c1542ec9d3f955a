package org.minicpmv.core;

import java.io.IOException;
import java.io.InputStream;
import org.json.JSONObject;

/** What the assistant needs of the system that it runs on. */
public interface Host {
  /** Brings an event to the page, if there is one. */
  void toPage(JSONObject event);

  /** Keeps the system from stopping the app while it works. */
  void working(boolean busy);

  /** Asks the user for a picture; it comes back through {@link Assistant#addPicture}. */
  void choosePicture(boolean camera);

  /** Asks the user for the weights; they come back through {@link Assistant#importWeights}. */
  void chooseWeights();

  void copy(String text);

  /** Asks the user where a text is kept. */
  void save(String name, String text);

  /** Leaves the app. */
  void leave();

  /** The system's language, as in `zh`. */
  String language();

  boolean isDark();

  /** What a report of a mistake says of the phone. */
  JSONObject about();

  /** Bytes of memory that are free; -1 where nobody knows. */
  long availableMemory();

  /** Opens one of the bundle's small files, which the app carries. */
  InputStream bundleFile(String name) throws IOException;

  /** Opens a file of the toolkit's `configs`, which the app carries. */
  InputStream configFile(String name) throws IOException;

  Decoder decoder();
}
