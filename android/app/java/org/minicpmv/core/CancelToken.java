package org.minicpmv.core;

/** A cancellation flag that long operations poll. */
public final class CancelToken {
  private volatile boolean cancelled;

  public void cancel() {
    cancelled = true;
  }

  public boolean isCancelled() {
    return cancelled;
  }

  /** Throws an exception if the operation was cancelled. */
  public void check() throws EngineException {
    if (cancelled) {
      throw new EngineException(EngineException.CANCELLED, "cancelled");
    }
  }
}
