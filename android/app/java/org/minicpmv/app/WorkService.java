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

/** A foreground service that keeps the app alive and the CPU awake while a job runs. */
public final class WorkService extends Service {
  private static final String CHANNEL = "work";
  private static final int NOTIFICATION = 1;
  private static final long AWAKE_MILLIS = 3_600_000; // upper limit, in case release is missed

  private static boolean wanted; // main thread only, like the next field
  private static WorkService running; // null: not started yet, or stopped

  private PowerManager.WakeLock awake;
  private int latest; // id of the latest start command

  /** Starts or stops it; called on the main thread. Only a visible app may start it. */
  static void set(Context context, boolean busy, boolean isVisible) {
    wanted = busy;
    if (busy && isVisible) {
      try {
        context.startForegroundService(new Intent(context, WorkService.class));
      } catch (IllegalStateException e) {
        return; // the app just left the screen; the job continues while the system allows it
      }
    } else if (!busy && running != null) {
      running.stopSelf(running.latest); // by id, so that a pending start is still delivered
    }
  }

  @Override
  public void onCreate() {
    super.onCreate();
    PowerManager power = (PowerManager) getSystemService(Context.POWER_SERVICE);
    awake = power.newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "minicpmv:work");
    awake.setReferenceCounted(false);
  }

  @Override
  public int onStartCommand(Intent intent, int flags, int id) {
    running = this;
    latest = id;
    try {
      show();
    } catch (IllegalStateException e) { // as in `set`
      wanted = false;
    }
    if (wanted) {
      awake.acquire(AWAKE_MILLIS);
    } else {
      stopSelf(id); // the job ended before the service started; it still had to call `show`
    }
    return START_NOT_STICKY;
  }

  /**
   * Since Android 15, after six hours a day: a service that does not stop now crashes the app. The
   * job continues while the system allows it.
   */
  public void onTimeout(int id, int type) { // overrides a method that the API of 14 lacks
    wanted = false;
    stopForeground(STOP_FOREGROUND_REMOVE);
    stopSelf(latest);
  }

  private void show() {
    NotificationManager manager =
        (NotificationManager) getSystemService(Context.NOTIFICATION_SERVICE);
    manager.createNotificationChannel(
        new NotificationChannel(
            CHANNEL,
            getString(R.string.notification_channel),
            NotificationManager.IMPORTANCE_LOW));
    Intent open = new Intent(this, MainActivity.class);
    Notification notification =
        new Notification.Builder(this, CHANNEL)
            .setSmallIcon(R.drawable.notification)
            .setContentTitle(getString(R.string.notification_text))
            .setContentIntent(
                PendingIntent.getActivity(this, 0, open, PendingIntent.FLAG_IMMUTABLE))
            .setOngoing(true)
            .build();
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
      startForeground(
          NOTIFICATION, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC);
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
