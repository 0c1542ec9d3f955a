package org.minicpmv.system;

import android.content.BroadcastReceiver;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.Build;
import android.os.PowerManager;
import org.minicpmv.core.Sparing;

/** Has an engine compute with fewer threads while the phone is hot or saves power. */
public final class PowerWatch extends BroadcastReceiver implements AutoCloseable {
  private final Context context;
  private final PowerManager power;
  private final Sparing engine;
  private final Heat heat; // null before Android 10

  private PowerWatch(Context context, PowerManager power, Sparing engine) {
    this.context = context;
    this.power = power;
    this.engine = engine;
    heat = Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q ? new Heat(this) : null;
  }

  /** Tells of the phone's state, now and when it changes. */
  public static PowerWatch start(Context context, Sparing engine) {
    Context app = context.getApplicationContext(); // an activity may end earlier
    PowerManager power = (PowerManager) app.getSystemService(Context.POWER_SERVICE);
    PowerWatch watch = new PowerWatch(app, power, engine);
    app.registerReceiver(watch, new IntentFilter(PowerManager.ACTION_POWER_SAVE_MODE_CHANGED));
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
      power.addThermalStatusListener(watch.heat);
    }
    watch.update();
    return watch;
  }

  @Override
  public void onReceive(Context receiver, Intent intent) {
    update();
  }

  /** Watches no longer. */
  @Override
  public void close() {
    context.unregisterReceiver(this);
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
      power.removeThermalStatusListener(heat);
    }
  }

  private void update() {
    engine.setSparing(power.isPowerSaveMode() || isHot());
  }

  /** Whether the system throttles so much that users notice it. */
  private boolean isHot() {
    return Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q
        && power.getCurrentThermalStatus() >= PowerManager.THERMAL_STATUS_SEVERE;
  }

  /** A class of its own, since its interface is missing before Android 10. */
  private static final class Heat implements PowerManager.OnThermalStatusChangedListener {
    private final PowerWatch watch;

    Heat(PowerWatch watch) {
      this.watch = watch;
    }

    @Override
    public void onThermalStatusChanged(int status) {
      watch.update();
    }
  }
}
