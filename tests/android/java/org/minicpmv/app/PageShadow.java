package org.minicpmv.app;

import android.webkit.ValueCallback;
import android.webkit.WebView;
import java.util.ArrayList;
import java.util.List;
import org.robolectric.annotation.Implementation;
import org.robolectric.annotation.Implements;
import org.robolectric.shadows.ShadowWebView;

/** A web view without a browser, which records the scripts that the app runs in its page. */
@Implements(WebView.class)
public final class PageShadow extends ShadowWebView {
  private final List<String> scripts = new ArrayList<>();

  /** Returns all scripts so far, oldest first. */
  List<String> scripts() {
    return scripts;
  }

  @Implementation
  @Override
  protected void evaluateJavascript(String script, ValueCallback<String> callback) {
    scripts.add(script);
  }
}
