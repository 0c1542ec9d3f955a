package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import android.content.res.TypedArray;
import android.graphics.Color;
import android.os.Build;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.annotation.Config;

/** Colours, language and size of text, as the system has them. */
@RunWith(RobolectricTestRunner.class)
public class ThemeTest {
  private static final int DARKEST_LIGHT = 180; // of 255: a level that dark buttons show on

  @Rule public final Phone phone = new Phone();

  @Test
  public void buttonsShowOnTheNavigationBar() {
    phone.open();
    assertReadable();
  }

  @Test
  @Config(qualifiers = "night")
  public void buttonsShowOnTheNavigationBarAtNight() {
    phone.open();
    assertReadable();
    assertFalse(isLight(color(android.R.attr.navigationBarColor)));
  }

  @Test
  public void thePageFollowsTheSystem() throws Exception {
    phone.open();
    JSONObject state = phone.await("state");
    assertFalse(state.getBoolean("dark"));
    assertEquals("en", state.getString("language"));
    for (String qualifiers : new String[] {"+zh-rCN", "+night"}) {
      RuntimeEnvironment.setQualifiers(qualifiers);
      phone.screen().configurationChange();
    }
    phone.await(
        "Chinese at night",
        new Phone.Condition() {
          @Override
          public boolean holds() throws Exception {
            JSONObject latest = phone.await("state");
            return latest.getBoolean("dark") && latest.getString("language").equals("zh");
          }
        });
  }

  @Test
  public void thePageHasTheSystemsSizeOfText() {
    RuntimeEnvironment.setFontScale(2);
    phone.open();
    assertEquals(200, phone.webView().getSettings().getTextZoom());
    RuntimeEnvironment.setFontScale(1.15f);
    phone.screen().configurationChange();
    assertEquals(115, phone.webView().getSettings().getTextZoom());
  }

  /** Checks that the bar has dark buttons exactly if its colour is light. */
  private void assertReadable() {
    boolean isLight = isLight(color(android.R.attr.navigationBarColor));
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.O_MR1) {
      assertFalse(isLight); // buttons are white
    } else {
      assertEquals(isLight, flag(android.R.attr.windowLightNavigationBar));
    }
    assertEquals(
        isLight(color(android.R.attr.statusBarColor)), flag(android.R.attr.windowLightStatusBar));
  }

  private static boolean isLight(int color) {
    int level = Color.green(color);
    return level > DARKEST_LIGHT;
  }

  private int color(int attribute) {
    TypedArray value = phone.activity().getTheme().obtainStyledAttributes(new int[] {attribute});
    assertTrue(value.hasValue(0));
    return value.getColor(0, 0);
  }

  private boolean flag(int attribute) {
    return phone
        .activity()
        .getTheme()
        .obtainStyledAttributes(new int[] {attribute})
        .getBoolean(0, false);
  }
}
