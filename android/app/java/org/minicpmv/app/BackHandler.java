package org.minicpmv.app;

import android.os.Build;
import android.window.OnBackInvokedCallback;
import android.window.OnBackInvokedDispatcher;

/**
 * Gives Back to the page while the page has something to close. Else the system handles it, and
 * shows where it leads while the user still swipes. Since Android 13.
 */
final class BackHandler implements OnBackInvokedCallback {
  private final MainActivity activity;

  private BackHandler(MainActivity activity) {
    this.activity = activity;
  }

  /** Returns the handler that is registered from now on; null: none. */
  static BackHandler set(MainActivity activity, BackHandler now, boolean takesBack) {
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU || takesBack == (now != null)) {
      return now;
    }
    OnBackInvokedDispatcher dispatcher = activity.getOnBackInvokedDispatcher();
    if (!takesBack) {
      dispatcher.unregisterOnBackInvokedCallback(now);
      return null;
    }
    BackHandler handler = new BackHandler(activity);
    dispatcher.registerOnBackInvokedCallback(OnBackInvokedDispatcher.PRIORITY_DEFAULT, handler);
    return handler;
  }

  @Override
  public void onBackInvoked() {
    activity.goBack();
  }
}
