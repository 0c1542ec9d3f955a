package org.minicpmv.app;

import android.webkit.JavascriptInterface;

/** The object that the page calls. The web view only ever shows the app's own page. */
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
