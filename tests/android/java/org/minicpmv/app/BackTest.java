package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import android.os.Build;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;
import org.robolectric.shadow.api.Shadow;

/** Back goes to the page only while the page has something to close. */
@RunWith(RobolectricTestRunner.class)
public class BackTest {
  @Rule public final Phone phone = new Phone();

  @Test
  @Config(minSdk = Build.VERSION_CODES.TIRAMISU)
  public void theSystemIsToldWhatBackDoes() throws Exception {
    phone.open();
    String can = phone.awaitAbilities();
    assertTrue(can, can.contains("back"));
    assertFalse(goBack());
    for (int i = 0; i < 2; i++) {
      say(true);
      say(true);
      assertTrue(goBack());
      assertEquals("back", phone.await("back").getString("event"));
      say(false);
      assertFalse(goBack());
    }
  }

  @Test
  @Config(maxSdk = Build.VERSION_CODES.S_V2)
  public void olderVersionsAlwaysAskThePage() throws Exception {
    phone.open();
    String can = phone.awaitAbilities();
    assertFalse(can, can.contains("back"));
    say(true); // changes nothing
    phone.activity().onBackPressed();
    assertEquals("back", phone.await("back").getString("event"));
  }

  private void say(boolean takesBack) {
    phone.say("do", "back", "takes", takesBack);
    phone.idle();
  }

  /** Goes back; returns whether the app handles it. */
  private boolean goBack() {
    BackShadow shadow = Shadow.extract(phone.activity().getOnBackInvokedDispatcher());
    return shadow.goBack();
  }
}
