package org.minicpmv.core;

/** A wish to stop, which work that takes long looks at. */
public final class Cancel {
  private volatile boolean wished;

  public void wish() {
    wished = true;
  }

  public boolean isWished() {
    return wished;
  }

  /** Ends work that nobody waits for any more. */
  public void check() throws EngineException {
    if (wished) {
      throw new EngineException(EngineException.CANCELLED, "cancelled");
    }
  }
}
