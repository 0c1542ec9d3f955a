package org.minicpmv.core;

import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;

/**
 * A file of another app that the user chose, opened.
 *
 * <p>This app may read what it was given, but not open the file by a path.
 */
public interface LentFile extends Closeable {
  /** Identifies the file; {@link Host#openLent} opens it again by this. */
  String address();

  /** The file's name, as the user knows it. */
  String name();

  /** The file's size in bytes; -1 if unknown. */
  long size();

  /** Whether it can be used where it is, now and later; else, for example a stream, only copied. */
  boolean isUsable();

  /** Returns a text that differs once the file has changed, as far as the system tells. */
  String stamp() throws IOException;

  /** Opens a stream from the file's beginning. */
  InputStream read() throws IOException;

  /** Sends the file's descriptor to an abstract Unix socket, where the engine waits for it. */
  void handTo(String socket) throws IOException;
}
