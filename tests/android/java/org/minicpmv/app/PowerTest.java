package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.robolectric.Shadows.shadowOf;

import android.content.Context;
import android.content.Intent;
import android.os.Build;
import android.os.PowerManager;
import java.io.File;
import java.nio.file.Files;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.core.Json;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;
import org.robolectric.shadows.ShadowPowerManager;

/** Fewer threads compute while the phone is hot or saves power. */
@RunWith(RobolectricTestRunner.class)
public class PowerTest {
  private static final String END = " threads compute"; // of a line of the log

  @Rule public final Phone phone = new Phone();

  private ShadowPowerManager power;

  @Before
  public void useFourThreads() throws Exception {
    power = shadowOf((PowerManager) phone.app().getSystemService(Context.POWER_SERVICE));
    phone.ready().say("do", "settings", "settings", Json.object("threads", 4));
    phone.awaitModel();
    ask(); // the engine starts again
    assertEquals("", latest());
  }

  @Test
  public void theBatterySaverHalvesTheThreads() throws Exception {
    save(true);
    assertEquals("2 of 4", latest());
    ask();
    save(false);
    assertEquals("4 of 4", latest());
    ask();
  }

  @Test
  public void anEngineThatStartsMeanwhileHasFewerThreads() throws Exception {
    save(true);
    phone.restartProcess();
    new File(phone.app().getFilesDir(), "log.txt").delete();
    phone.open().awaitModel();
    assertEquals("2 of 4", latest());
  }

  @Test
  @Config(minSdk = Build.VERSION_CODES.Q)
  public void aHotPhoneHalvesTheThreads() throws Exception {
    heat(PowerManager.THERMAL_STATUS_MODERATE);
    assertEquals("", latest());
    heat(PowerManager.THERMAL_STATUS_CRITICAL);
    assertEquals("2 of 4", latest());
    save(true);
    heat(PowerManager.THERMAL_STATUS_NONE);
    assertEquals("2 of 4", latest());
    save(false);
    assertEquals("4 of 4", latest());
  }

  private void ask() throws Exception {
    phone.say("do", "send", "text", "hello");
    phone.awaitAnswer();
    phone.awaitModel();
  }

  private void save(boolean isOn) {
    power.setIsPowerSaveMode(isOn);
    phone.app().sendBroadcast(new Intent(PowerManager.ACTION_POWER_SAVE_MODE_CHANGED));
    phone.idle();
  }

  private void heat(int status) {
    power.setCurrentThermalStatus(status);
    phone.idle();
  }

  /** Returns what the log says of the threads at last; empty if it says nothing. */
  private String latest() throws Exception {
    String found = "";
    File log = new File(phone.app().getFilesDir(), "log.txt");
    for (String line : Files.readAllLines(log.toPath())) {
      int end = line.indexOf(END);
      found = end < 0 ? found : line.substring(line.indexOf("engine: ") + 8, end);
    }
    return found;
  }
}
