package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import android.graphics.Insets;
import android.graphics.Rect;
import android.graphics.drawable.ColorDrawable;
import android.os.Build;
import android.view.DisplayCutout;
import android.view.View;
import android.view.Window;
import android.view.WindowInsets;
import android.view.WindowInsetsController;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;

/** What surrounds the page: the system's bars, the cut-out, the keyboard; their colours. */
@RunWith(RobolectricTestRunner.class)
public class EdgesTest {
  private static final int LIGHT = 0xfff7f6f3; // of res/values/styles.xml
  private static final int DARK = 0xff16181c;

  @Rule public final Phone phone = new Phone();

  @Test
  @Config(minSdk = Build.VERSION_CODES.R, qualifiers = "xhdpi")
  public void thePageIsToldWhatTheSystemCovers() throws Exception {
    phone.open();
    Rect hole = new Rect(0, 100, 61, 160);
    boolean isConsumed =
        dispatch(
            new WindowInsets.Builder()
                .setInsets(WindowInsets.Type.statusBars(), Insets.of(0, 48, 0, 0))
                .setInsets(WindowInsets.Type.navigationBars(), Insets.of(0, 0, 0, 96))
                .setDisplayCutout(
                    new DisplayCutout(Insets.of(61, 0, 0, 0), hole, null, null, null)));
    assertTrue(isConsumed);
    awaitInsets("{\"top\":24,\"right\":0,\"bottom\":48,\"left\":31}");
    assertEquals(0, content().getPaddingBottom());
  }

  @Test
  @Config(minSdk = Build.VERSION_CODES.R, qualifiers = "xhdpi")
  public void theKeyboardMakesThePageSmaller() throws Exception {
    phone.open();
    WindowInsets.Builder bars =
        new WindowInsets.Builder()
            .setInsets(WindowInsets.Type.navigationBars(), Insets.of(0, 0, 0, 96));
    dispatch(bars);
    awaitInsets("{\"top\":0,\"right\":0,\"bottom\":48,\"left\":0}");
    dispatch(bars.setInsets(WindowInsets.Type.ime(), Insets.of(0, 0, 0, 600)));
    awaitInsets("{\"top\":0,\"right\":0,\"bottom\":0,\"left\":0}");
    assertEquals(600, content().getPaddingBottom());
    dispatch(bars.setInsets(WindowInsets.Type.ime(), Insets.NONE));
    awaitInsets("{\"top\":0,\"right\":0,\"bottom\":48,\"left\":0}");
    assertEquals(0, content().getPaddingBottom());
  }

  @Test
  @Config(maxSdk = Build.VERSION_CODES.Q)
  public void olderVersionsKeepThePageOffTheBars() throws Exception {
    phone.open();
    assertFalse(phone.await("state").has("insets"));
    int flags = window().getDecorView().getSystemUiVisibility();
    assertEquals(0, flags & View.SYSTEM_UI_FLAG_LAYOUT_FULLSCREEN);
  }

  @Test
  public void theBarsHaveThePagesTheme() throws Exception {
    phone.open();
    phone.awaitProblem(); // the settings are read
    assertTheme(false);
    for (String theme : new String[] {"dark", "light", "system"}) {
      phone.say("do", "settings", "settings", new JSONObject().put("theme", theme));
      boolean isDark = theme.equals("dark");
      while (phone.await("state").getBoolean("dark") != isDark) {
        continue; // a state from before
      }
      phone.idle();
      assertTheme(isDark);
    }
  }

  @Test
  @Config(qualifiers = "night")
  public void theBarsFollowTheSystemsTheme() throws Exception {
    phone.open();
    phone.awaitProblem();
    assertTheme(true);
  }

  private void assertTheme(boolean isDark) {
    ColorDrawable background = (ColorDrawable) window().getDecorView().getBackground();
    assertEquals(isDark ? DARK : LIGHT, background.getColor());
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
      int both =
          WindowInsetsController.APPEARANCE_LIGHT_STATUS_BARS
              | WindowInsetsController.APPEARANCE_LIGHT_NAVIGATION_BARS;
      int found = window().getInsetsController().getSystemBarsAppearance();
      assertEquals(isDark ? 0 : both, found & both);
      assertEquals(0, window().getStatusBarColor());
      assertEquals(0, window().getNavigationBarColor());
    } else {
      int found = window().getDecorView().getSystemUiVisibility();
      assertEquals(!isDark, (found & View.SYSTEM_UI_FLAG_LIGHT_STATUS_BAR) != 0);
      assertEquals(isDark ? DARK : LIGHT, window().getStatusBarColor());
    }
  }

  /** Plays the system's report; returns whether nothing of it goes on to the web view. */
  private boolean dispatch(WindowInsets.Builder insets) {
    return content().dispatchApplyWindowInsets(insets.build()).isConsumed();
  }

  private void awaitInsets(String expected) throws Exception {
    String found;
    do {
      found = String.valueOf(phone.await("state").optJSONObject("insets"));
    } while (!found.equals(expected));
  }

  private View content() {
    return phone.activity().findViewById(android.R.id.content);
  }

  private Window window() {
    return phone.activity().getWindow();
  }
}
