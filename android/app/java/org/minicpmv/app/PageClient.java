package org.minicpmv.app;

import android.graphics.Bitmap;
import android.net.Uri;
import android.webkit.RenderProcessGoneDetail;
import android.webkit.WebResourceRequest;
import android.webkit.WebResourceResponse;
import android.webkit.WebView;
import android.webkit.WebViewClient;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import org.minicpmv.core.PageFiles;

/** Serves the page from the APK, and blocks everything else. */
final class PageClient extends WebViewClient {
  private static final String TEXT = "text/plain";
  private static final int OK = 200;
  private static final int NOT_FOUND = 404;

  private final App app;

  PageClient(App app) {
    this.app = app;
  }

  @Override
  public WebResourceResponse shouldInterceptRequest(WebView view, WebResourceRequest request) {
    Uri url = request.getUrl();
    String path = url.getPath();
    if (!url.toString().startsWith(PageFiles.ORIGIN + "/")) {
      return answer(NOT_FOUND, "Not Found", TEXT, nothing());
    }
    try {
      String picture = PageFiles.picture(path);
      File file = picture == null ? null : app.assistant().picture(picture);
      if (file != null) {
        return answer(OK, "OK", "image/jpeg", new FileInputStream(file));
      }
      String asset = PageFiles.asset(path);
      if (asset != null) {
        return answer(OK, "OK", PageFiles.type(asset), app.getAssets().open(asset));
      }
    } catch (IOException e) {
      return answer(NOT_FOUND, "Not Found", TEXT, nothing()); // not in this APK
    }
    return answer(NOT_FOUND, "Not Found", TEXT, nothing());
  }

  @Override
  public void onPageStarted(WebView view, String url, Bitmap icon) {
    app.assistant().expectPage();
  }

  @Override
  public boolean shouldOverrideUrlLoading(WebView view, WebResourceRequest request) {
    return !PageFiles.START.equals(request.getUrl().toString());
  }

  /** The renderer process crashed, or the system killed it, usually for memory. */
  @Override
  public boolean onRenderProcessGone(WebView view, RenderProcessGoneDetail detail) {
    ((MainActivity) view.getContext()).onPageGone(view);
    return true;
  }

  private static WebResourceResponse answer(
      int code, String reason, String type, InputStream content) {
    return new WebResourceResponse(type, "utf-8", code, reason, PageFiles.headers(), content);
  }

  private static InputStream nothing() {
    return new ByteArrayInputStream(new byte[0]);
  }
}
