package org.minicpmv.app;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.Manifest;
import android.app.AlertDialog;
import android.content.DialogInterface;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;
import org.robolectric.shadows.ShadowAlertDialog;

/** When and how the app asks whether it may show notifications. */
@RunWith(RobolectricTestRunner.class)
public class NotificationTest {
  private static final String PERMISSION = Manifest.permission.POST_NOTIFICATIONS;

  @Rule public final Phone phone = new Phone();

  @Test
  @Config(minSdk = 33)
  public void thePermissionIsAskedForWithTheFirstAnswer() throws Exception {
    phone.ready();
    assertNull(shadowOf(phone.activity()).getLastRequestedPermission());
    assertNull(ShadowAlertDialog.getLatestAlertDialog());
    ask();
    AlertDialog dialog = ShadowAlertDialog.getLatestAlertDialog();
    String why = phone.app().getString(R.string.notification_why);
    assertEquals(why, shadowOf(dialog).getMessage().toString());
    assertNull(shadowOf(phone.activity()).getLastRequestedPermission());
    dialog.getButton(DialogInterface.BUTTON_POSITIVE).performClick();
    phone.idle();
    assertArrayEquals(
        new String[] {PERMISSION},
        shadowOf(phone.activity()).getLastRequestedPermission().requestedPermissions);
    ask();
    assertEquals(dialog, ShadowAlertDialog.getLatestAlertDialog());
  }

  @Test
  @Config(minSdk = 33)
  public void whoDeclinesIsNotAskedAgain() throws Exception {
    phone.ready();
    ask();
    AlertDialog dialog = ShadowAlertDialog.getLatestAlertDialog();
    dialog.getButton(DialogInterface.BUTTON_NEGATIVE).performClick();
    phone.idle();
    assertFalse(dialog.isShowing());
    phone.restartProcess();
    phone.open();
    phone.awaitModel();
    ask();
    assertEquals(dialog, ShadowAlertDialog.getLatestAlertDialog());
    assertNull(shadowOf(phone.activity()).getLastRequestedPermission());
  }

  @Test
  @Config(minSdk = 33)
  public void aGrantedPermissionIsNotAskedFor() throws Exception {
    phone.ready();
    shadowOf(phone.app()).grantPermissions(PERMISSION);
    ask();
    assertNull(ShadowAlertDialog.getLatestAlertDialog());
  }

  @Test
  @Config(minSdk = 33)
  public void theQuestionGoesWithTheScreen() throws Exception {
    phone.ready();
    ask();
    AlertDialog dialog = ShadowAlertDialog.getLatestAlertDialog();
    assertTrue(dialog.isShowing());
    phone.screen().recreate();
    assertFalse(dialog.isShowing());
  }

  @Test
  @Config(maxSdk = 32)
  public void olderPhonesNeedNoPermission() throws Exception {
    phone.ready();
    ask();
    assertNull(ShadowAlertDialog.getLatestAlertDialog());
    assertNull(shadowOf(phone.activity()).getLastRequestedPermission());
  }

  private void ask() throws Exception {
    phone.say("do", "send", "text", "hello");
    phone.awaitAnswer();
    phone.awaitModel();
  }
}
