package org.minicpmv.core;

/** Computes with fewer threads on demand. */
public interface Sparing {
  /** Halves the number of threads that compute, or not; also for the answer that is under way. */
  void setSparing(boolean isSparing);
}
