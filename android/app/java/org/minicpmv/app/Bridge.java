package org.minicpmv.app;

import android.webkit.JavascriptInterface;

/** What the page can call; only the app's own page is ever shown. */
final class Bridge {
  private final App app;

  Bridge(App app) {
    this.app = app;
  }

  @JavascriptInterface
  public void send(String command) {
    app.assistant().receive(command);
  }
}
