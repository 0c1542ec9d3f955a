package org.minicpmv.app;

import android.os.Build;
import android.window.OnBackInvokedCallback;
import org.robolectric.annotation.Implementation;
import org.robolectric.annotation.Implements;

/** Keeps the callback that the app registers for Back. Robolectric's windows do not call it. */
@Implements(
    className = "android.window.ProxyOnBackInvokedDispatcher",
    minSdk = Build.VERSION_CODES.TIRAMISU,
    isInAndroidSdk = false)
public final class BackShadow {
  private OnBackInvokedCallback callback; // null: none

  /** Does what Android does when the user goes back; returns whether the app handles it. */
  boolean goBack() {
    if (callback != null) {
      callback.onBackInvoked();
      return true;
    }
    return false;
  }

  @Implementation
  protected void registerOnBackInvokedCallback(int priority, OnBackInvokedCallback newCallback) {
    callback = newCallback;
  }

  @Implementation
  protected void unregisterOnBackInvokedCallback(OnBackInvokedCallback oldCallback) {
    callback = callback == oldCallback ? null : callback;
  }
}
