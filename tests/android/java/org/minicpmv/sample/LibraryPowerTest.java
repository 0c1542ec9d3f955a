package org.minicpmv.sample;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.robolectric.Shadows.shadowOf;

import android.app.Application;
import android.content.Context;
import android.content.Intent;
import android.os.Build;
import android.os.Looper;
import android.os.PowerManager;
import java.io.File;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.json.JSONObject;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.core.MiniCpmV;
import org.minicpmv.system.PowerWatch;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;
import org.robolectric.shadows.ShadowApplication;
import org.robolectric.shadows.ShadowPowerManager;

/** The library computes with fewer threads while the phone is hot or saves power, as the app does. */
@RunWith(RobolectricTestRunner.class)
public class LibraryPowerTest {
  @Rule public final HostApp app = new HostApp();

  private ShadowPowerManager power;
  private File requests;

  @Before
  public void record() throws Exception {
    app.pushFiles();
    requests = app.record();
    power = shadowOf((PowerManager) app.context().getSystemService(Context.POWER_SERVICE));
  }

  private void save(boolean isOn) {
    power.setIsPowerSaveMode(isOn);
    app.context().sendBroadcast(new Intent(PowerManager.ACTION_POWER_SAVE_MODE_CHANGED));
    shadowOf(Looper.getMainLooper()).idle();
  }

  /** Returns the numbers of threads that the engine was told, once it has answered. */
  private List<Integer> told(MiniCpmV model) throws Exception {
    model.setMaxNewTokens(1);
    model.chat(null, Collections.singletonList("hello"), null); // requests come in order
    List<Integer> threads = new ArrayList<>();
    for (String line : Files.readAllLines(requests.toPath())) {
      JSONObject request = new JSONObject(line);
      if (request.getString("op").equals("threads")) {
        threads.add(request.getInt("threads"));
      }
    }
    return threads;
  }

  @Test
  public void theBatterySaverHalvesTheThreads() throws Exception {
    try (MiniCpmV model = app.open()) {
      assertEquals(Collections.emptyList(), told(model));
      save(true);
      save(true); // which changes nothing
      assertEquals(Arrays.asList(2), told(model));
      save(false);
      assertEquals(Arrays.asList(2, 4), told(model));
    }
  }

  @Test
  public void anEngineThatStartsMeanwhileHasFewerThreads() throws Exception {
    save(true);
    try (MiniCpmV model = app.open()) {
      assertEquals(Arrays.asList(2), told(model));
    }
  }

  @Test
  @Config(minSdk = Build.VERSION_CODES.Q)
  public void aHotPhoneHalvesTheThreads() throws Exception {
    try (MiniCpmV model = app.open()) {
      power.setCurrentThermalStatus(PowerManager.THERMAL_STATUS_SEVERE);
      shadowOf(Looper.getMainLooper()).idle();
      assertEquals(Arrays.asList(2), told(model));
    }
  }

  @Test
  public void aClosedModelWatchesNoMore() throws Exception {
    MiniCpmV model = app.open();
    model.close();
    model.close();
    save(true);
    for (ShadowApplication.Wrapper found :
        shadowOf((Application) app.context()).getRegisteredReceivers()) {
      assertFalse(found.broadcastReceiver instanceof PowerWatch);
    }
  }
}
