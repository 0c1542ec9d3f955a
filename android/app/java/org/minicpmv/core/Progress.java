package org.minicpmv.core;

/** Hears of work that takes long. */
public interface Progress {
  void onProgress(String stage, long done, long total);
}
