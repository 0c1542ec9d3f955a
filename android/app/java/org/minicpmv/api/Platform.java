package org.minicpmv.api;

/** What the server asks of the phone. Methods may be called from any thread. */
public interface Platform {
  /** Keeps the app from being stopped while the server runs, and tells the user that it does. */
  void setServing(boolean isServing);

  /** Keeps the processor awake while a request is answered. */
  void setAwake(boolean isAwake);
}
