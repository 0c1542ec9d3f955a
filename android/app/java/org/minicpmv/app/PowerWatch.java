package org.minicpmv.app;

import android.content.BroadcastReceiver;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.Build;
import android.os.PowerManager;
import org.minicpmv.core.Assistant;

/** Has the engine compute with fewer threads while the phone is hot or saves power. */
final class PowerWatch extends BroadcastReceiver {
  private final PowerManager power;
  private final Assistant assistant;

  private PowerWatch(PowerManager power, Assistant assistant) {
    this.power = power;
    this.assistant = assistant;
  }

  /** Tells the assistant of the phone's state, now and when it changes. */
  static void start(Context context, Assistant assistant) {
    PowerManager power = (PowerManager) context.getSystemService(Context.POWER_SERVICE);
    PowerWatch watch = new PowerWatch(power, assistant);
    context.registerReceiver(
        watch, new IntentFilter(PowerManager.ACTION_POWER_SAVE_MODE_CHANGED));
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
      power.addThermalStatusListener(new Heat(watch));
    }
    watch.update();
  }

  @Override
  public void onReceive(Context context, Intent intent) {
    update();
  }

  private void update() {
    assistant.setSparing(power.isPowerSaveMode() || isHot());
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
