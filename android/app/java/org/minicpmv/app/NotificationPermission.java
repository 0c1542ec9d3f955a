package org.minicpmv.app;

import android.Manifest;
import android.app.AlertDialog;
import android.content.Context;
import android.content.DialogInterface;
import android.content.SharedPreferences;
import android.content.pm.PackageManager;
import android.os.Build;

/** Asks, once, whether the app may show that the model works while the app is in the background. */
final class NotificationPermission {
  private static final String FILE = "permissions";
  private static final String ASKED = "notifications";

  private NotificationPermission() {}

  /** Explains the permission and asks for it, unless the user has answered before. */
  static void ask(final MainActivity activity) {
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU
        || activity.checkSelfPermission(Manifest.permission.POST_NOTIFICATIONS)
            == PackageManager.PERMISSION_GRANTED
        || kept(activity).getBoolean(ASKED, false)) {
      return;
    }
    activity.show(
        new AlertDialog.Builder(activity)
            .setMessage(R.string.notification_why)
            .setNegativeButton(R.string.not_now, null)
            .setPositiveButton(
                R.string.allow,
                new DialogInterface.OnClickListener() {
                  @Override
                  public void onClick(DialogInterface dialog, int button) {
                    activity.requestPermissions(
                        new String[] {Manifest.permission.POST_NOTIFICATIONS}, 0);
                  }
                })
            .create());
    kept(activity).edit().putBoolean(ASKED, true).apply();
  }

  private static SharedPreferences kept(Context context) {
    return context.getSharedPreferences(FILE, Context.MODE_PRIVATE);
  }
}
