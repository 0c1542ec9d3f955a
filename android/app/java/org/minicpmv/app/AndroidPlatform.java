package org.minicpmv.app;

import android.os.Handler;
import android.os.Looper;
import org.minicpmv.api.Platform;

/** What the server asks of Android, on the main thread. */
final class AndroidPlatform implements Platform {
  private final App app;
  private final Handler main = new Handler(Looper.getMainLooper());
  private boolean isAwake; // as was asked for last; on the server's thread only

  AndroidPlatform(App app) {
    this.app = app;
  }

  @Override
  public void setServing(final boolean isServing) {
    main.post(
        new Runnable() {
          @Override
          public void run() {
            ApiService.set(app, isServing);
          }
        });
    if (isServing) {
      app.host().prepareBackground();
    }
  }

  @Override
  public synchronized void setAwake(final boolean wanted) {
    if (wanted == isAwake) {
      return;
    }
    isAwake = wanted;
    main.post(
        new Runnable() {
          @Override
          public void run() {
            ApiService.setAwake(wanted);
          }
        });
  }
}
