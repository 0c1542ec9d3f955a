package org.minicpmv.app;

import android.content.Context;
import android.util.AndroidRuntimeException;
import android.webkit.ValueCallback;
import android.webkit.WebSettings;
import android.webkit.WebView;
import java.util.ArrayList;
import java.util.List;
import org.robolectric.annotation.Implementation;
import org.robolectric.annotation.Implements;
import org.robolectric.annotation.RealObject;
import org.robolectric.shadow.api.Shadow;
import org.robolectric.shadows.ShadowWebView;
import org.robolectric.util.ReflectionHelpers.ClassParameter;

/** A web view without a browser, which records the scripts that the app runs in its page. */
@Implements(WebView.class)
public final class PageShadow extends ShadowWebView {
  private static boolean isMissing; // the phone has no WebView
  private static int version; // Chromium's

  @RealObject private WebView real;
  private final List<String> scripts = new ArrayList<>();
  private String result = "true"; // of a script; null: the page hangs

  static void setMissing(boolean shallBeMissing) {
    isMissing = shallBeMissing;
  }

  static void setVersion(int newVersion) {
    version = newVersion;
  }

  /** Gives the next phone a web view of today. */
  static void renew() {
    isMissing = false;
    version = 120;
  }

  /** Returns all scripts so far, oldest first. */
  List<String> scripts() {
    return scripts;
  }

  /** Sets the result of scripts in JSON; null: none comes. */
  void setResult(String newResult) {
    result = newResult;
  }

  @Implementation
  protected void __constructor__(Context context) {
    if (isMissing) {
      throw new AndroidRuntimeException("MissingWebViewPackageException: no WebView installed");
    }
    Shadow.invokeConstructor(WebView.class, real, ClassParameter.from(Context.class, context));
  }

  @Implementation
  @Override
  protected WebSettings getSettings() {
    WebSettings settings = super.getSettings();
    settings.setUserAgentString("Mozilla/5.0 (Linux) Chrome/" + version + ".0.1.2 Mobile");
    return settings;
  }

  @Implementation
  @Override
  protected void evaluateJavascript(String script, ValueCallback<String> callback) {
    scripts.add(script);
    if (callback != null && result != null) {
      callback.onReceiveValue(result);
    }
  }
}
