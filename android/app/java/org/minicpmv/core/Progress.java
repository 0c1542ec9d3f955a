package org.minicpmv.core;

/** Receives the progress of a long operation. */
public interface Progress {
  void onProgress(String stage, long done, long total);
}
