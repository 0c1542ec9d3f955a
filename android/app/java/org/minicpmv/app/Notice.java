package org.minicpmv.app;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.content.pm.PackageInfo;
import android.net.Uri;
import android.provider.Settings;
import android.view.Gravity;
import android.view.View;
import android.webkit.WebView;
import android.widget.Button;
import android.widget.LinearLayout;
import android.widget.TextView;
import android.widget.Toast;

/** Stands in for a page that cannot be shown: says why, and offers ways on. */
final class Notice {
  private static final String WEB_VIEW = "com.google.android.webview"; // if the phone names none
  private static final int PADDING = 24; // density-independent pixels, as the next two
  private static final int MOST_WIDTH = 560;
  private static final int TARGET = 48; // the least height of a button

  private final Activity activity;
  private final LinearLayout view;

  Notice(Activity activity, String text) {
    this.activity = activity;
    view = new LinearLayout(activity);
    view.setOrientation(LinearLayout.VERTICAL);
    view.setGravity(Gravity.CENTER);
    view.setFitsSystemWindows(true);
    view.setPadding(pixels(PADDING), pixels(PADDING), pixels(PADDING), pixels(PADDING));
    TextView message = new TextView(activity);
    message.setText(text);
    message.setTextAppearance(android.R.style.TextAppearance_DeviceDefault_Medium);
    message.setMaxWidth(pixels(MOST_WIDTH));
    message.setPadding(0, 0, 0, pixels(PADDING));
    view.addView(message);
  }

  /** Adds a button. */
  Notice with(int text, final Runnable action) {
    Button button = new Button(activity);
    button.setText(text);
    button.setMinHeight(pixels(TARGET));
    button.setOnClickListener(
        new View.OnClickListener() {
          @Override
          public void onClick(View clicked) {
            action.run();
          }
        });
    int fit = LinearLayout.LayoutParams.WRAP_CONTENT;
    view.addView(button, new LinearLayout.LayoutParams(fit, fit));
    return this;
  }

  /** Adds a button that opens the store's page of the WebView, or the phone's settings of it. */
  Notice withUpdate() {
    return with(
        R.string.update,
        new Runnable() {
          @Override
          public void run() {
            update();
          }
        });
  }

  /** Shows it in place of the page. */
  void show() {
    with(
        R.string.close,
        new Runnable() {
          @Override
          public void run() {
            activity.finish();
          }
        });
    activity.setContentView(view);
  }

  private void update() {
    PackageInfo current = WebView.getCurrentWebViewPackage();
    String name = current == null ? WEB_VIEW : current.packageName;
    Intent store = new Intent(Intent.ACTION_VIEW, Uri.parse("market://details?id=" + name));
    Intent settings =
        new Intent(
            Settings.ACTION_APPLICATION_DETAILS_SETTINGS, Uri.fromParts("package", name, null));
    if (!start(store) && !start(settings)) {
      Toast.makeText(activity, R.string.no_picker, Toast.LENGTH_LONG).show();
    }
  }

  private boolean start(Intent intent) {
    try {
      activity.startActivity(intent);
      return true;
    } catch (ActivityNotFoundException e) {
      return false;
    }
  }

  private int pixels(int size) {
    return Math.round(size * activity.getResources().getDisplayMetrics().density);
  }
}
