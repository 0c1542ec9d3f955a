package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotSame;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.content.Intent;
import android.os.Build;
import android.view.ViewGroup;
import android.webkit.WebView;
import android.widget.Button;
import android.widget.TextView;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.core.PageFiles;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;
import org.robolectric.shadow.api.Shadow;
import org.robolectric.shadows.ShadowToast;

/** The web view: missing, old, dead or hanging, and Back. */
@RunWith(RobolectricTestRunner.class)
public class PageTest {
  @Rule public final Phone phone = new Phone();

  @Test
  public void aPhoneWithoutWebViewSaysSo() {
    PageShadow.setMissing(true);
    phone.open();
    assertEquals(phone.app().getString(R.string.no_web_view), notice());
    button(R.string.close).performClick();
    assertTrue(phone.activity().isFinishing());
  }

  @Test
  public void anOldWebViewIsNamedAndCanBeUpdated() {
    PageShadow.setVersion(58); // of Android 8.0
    phone.open();
    assertEquals(
        "Android System WebView has version 58. This app needs version 64 or newer to show its "
            + "pages.",
        notice());
    button(R.string.update).performClick();
    Intent store = shadowOf(phone.activity()).getNextStartedActivity();
    assertEquals("market", store.getData().getScheme());
    PageShadow.setVersion(64);
    phone.screen().pause().stop().restart().start().resume();
    assertEquals(PageFiles.START, shadowOf(phone.webView()).getLastLoadedUrl());
  }

  @Test
  @Config(qualifiers = "zh")
  public void theNoticeIsInTheUsersLanguage() {
    PageShadow.setVersion(63);
    phone.open();
    assertEquals(
        "Android System WebView 的版本为 63。本应用需要 64 或更高版本才能显示页面。", notice());
  }

  @Test
  public void withoutAStoreTheSettingsAreOpened() {
    PageShadow.setMissing(true);
    phone.open();
    shadowOf(phone.app()).checkActivities(true);
    button(R.string.update).performClick();
    assertEquals(phone.app().getString(R.string.no_picker), ShadowToast.getTextOfLatestToast());
    assertNull(shadowOf(phone.activity()).getNextStartedActivity());
  }

  @Test
  public void backLeavesANotice() {
    PageShadow.setVersion(58);
    phone.open();
    back();
    assertTrue(phone.activity().isFinishing() || isLeft());
  }

  @Test
  public void aPageThatIsUpHandlesBack() throws Exception {
    phone.open();
    phone.say("do", "back", "takes", true);
    phone.idle();
    back();
    phone.await("back");
    assertFalse(isLeft());
    phone.say("do", "leave");
    phone.idle();
    assertTrue(isLeft());
  }

  @Test
  public void backLeavesAPageThatHasNotLoaded() {
    phone.open();
    phone.page().setResult("false");
    back();
    assertTrue(isLeft());
  }

  @Test
  public void backLeavesAPageThatHangs() {
    phone.open();
    phone.say("do", "back", "takes", true);
    phone.idle();
    phone.page().setResult(null);
    back();
    assertFalse(isLeft());
    back();
    assertTrue(isLeft());
  }

  @Test
  public void aPageThatDiesIsOpenedAgain() throws Exception {
    phone.ready();
    phone.say("do", "draft", "text", "what is");
    WebView old = phone.webView();
    PageShadow oldPage = phone.page();
    die();
    assertNotSame(old, phone.webView());
    assertTrue(oldPage.wasDestroyCalled());
    phone.loadPage();
    assertEquals("what is", phone.await("draft").getString("text"));
    phone.awaitModel();
  }

  @Test
  public void aPageThatKeepsDyingIsNotOpenedForEver() {
    phone.open();
    die();
    die();
    die();
    assertEquals(phone.app().getString(R.string.page_gone), notice());
    phone.say("do", "hello"); // events for a page that is gone do no harm
    phone.idle();
    button(R.string.try_again).performClick();
    die();
    assertTrue(phone.content() instanceof WebView);
  }

  @Test
  public void aPageThatDiesUnseenIsOpenedOnReturn() {
    phone.open();
    phone.screen().pause().stop();
    for (int i = 0; i < 5; i++) {
      die();
      assertNull(phone.content());
      phone.screen().restart().start().resume();
      assertTrue(phone.content() instanceof WebView);
      phone.screen().pause().stop();
    }
  }

  /** Presses Back, which reaches the activity another way since Android 13. */
  private void back() {
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU) {
      phone.activity().onBackPressed();
    } else {
      BackShadow back = Shadow.extract(phone.activity().getOnBackInvokedDispatcher());
      if (!back.goBack()) {
        phone.activity().moveTaskToBack(true); // as Android does without a handler
      }
    }
    phone.idle();
  }

  private void die() {
    WebView view = phone.webView();
    shadowOf(view).getWebViewClient().onRenderProcessGone(view, null);
  }

  /** Whether the app went to the background. */
  private boolean isLeft() {
    return shadowOf(phone.activity()).isTaskMovedToBack();
  }

  private String notice() {
    return ((TextView) ((ViewGroup) phone.content()).getChildAt(0)).getText().toString();
  }

  private Button button(int text) {
    ViewGroup notice = (ViewGroup) phone.content();
    for (int i = 1; i < notice.getChildCount(); i++) {
      Button button = (Button) notice.getChildAt(i);
      if (button.getText().toString().equals(phone.app().getString(text))) {
        return button;
      }
    }
    throw new AssertionError("no button " + phone.app().getString(text));
  }
}
