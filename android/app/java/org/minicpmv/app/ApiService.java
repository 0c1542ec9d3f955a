package org.minicpmv.app;

import android.app.Notification;
import android.app.NotificationChannel;
import android.app.NotificationManager;
import android.app.PendingIntent;
import android.app.Service;
import android.content.Context;
import android.content.Intent;
import android.content.pm.ServiceInfo;
import android.os.Build;
import android.os.IBinder;
import android.os.PowerManager;
import org.minicpmv.core.Json;

/** A foreground service that keeps the app alive while its server may answer other apps. */
public final class ApiService extends Service {
  private static final String CHANNEL = "api";
  private static final int NOTIFICATION = 2;
  private static final String OFF = "off"; // the notification's button
  private static final long AWAKE_MILLIS = 3_600_000; // upper limit, in case release is missed

  private static boolean wanted; // main thread only, like the next field
  private static ApiService running; // null: not started yet, or stopped

  private PowerManager.WakeLock awake;
  private int latest; // id of the latest start command

  /** Starts or stops it; called on the main thread. */
  static void set(Context context, boolean isServing) {
    wanted = isServing;
    if (isServing && running == null) {
      try {
        context.startForegroundService(new Intent(context, ApiService.class));
      } catch (IllegalStateException e) {
        return; // the app just left the screen; it serves while the system allows it
      }
    } else if (!isServing && running != null) {
      running.stopSelf(running.latest); // by id, so that a pending start is still delivered
    }
  }

  /** Keeps the processor awake, or no longer; called on the main thread. */
  static void setAwake(boolean isAwake) {
    if (running == null) {
      return;
    }
    if (isAwake) {
      running.awake.acquire(AWAKE_MILLIS);
    } else {
      running.awake.release();
    }
  }

  @Override
  public void onCreate() {
    super.onCreate();
    PowerManager power = (PowerManager) getSystemService(Context.POWER_SERVICE);
    awake = power.newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "minicpmv:api");
    awake.setReferenceCounted(false);
  }

  @Override
  public int onStartCommand(Intent intent, int flags, int id) {
    running = this;
    latest = id;
    if (intent != null && OFF.equals(intent.getAction())) {
      ((App) getApplication()).assistant().receive(Json.object("do", "api", "on", false).toString());
      return START_NOT_STICKY;
    }
    try {
      show();
    } catch (IllegalStateException e) { // as in `set`
      wanted = false;
    }
    if (!wanted) {
      stopSelf(id); // it was switched off before the service started, which had to call `show`
    }
    return START_NOT_STICKY;
  }

  private void show() {
    NotificationManager manager =
        (NotificationManager) getSystemService(Context.NOTIFICATION_SERVICE);
    manager.createNotificationChannel(
        new NotificationChannel(
            CHANNEL, getString(R.string.api_channel), NotificationManager.IMPORTANCE_LOW));
    int flags = PendingIntent.FLAG_IMMUTABLE;
    Intent open = new Intent(this, MainActivity.class);
    Intent off = new Intent(this, ApiService.class).setAction(OFF);
    Notification notification =
        new Notification.Builder(this, CHANNEL)
            .setSmallIcon(R.drawable.notification)
            .setContentTitle(getString(R.string.api_text))
            .setContentIntent(PendingIntent.getActivity(this, 0, open, flags))
            .addAction(
                new Notification.Action.Builder(
                        null,
                        getString(R.string.api_off),
                        PendingIntent.getService(this, 0, off, flags))
                    .build())
            .setOngoing(true)
            .build();
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.UPSIDE_DOWN_CAKE) {
      startForeground(NOTIFICATION, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_SPECIAL_USE);
    } else {
      startForeground(NOTIFICATION, notification);
    }
  }

  @Override
  public void onDestroy() {
    running = running == this ? null : running;
    awake.release();
    super.onDestroy();
  }

  @Override
  public IBinder onBind(Intent intent) {
    return null;
  }
}
