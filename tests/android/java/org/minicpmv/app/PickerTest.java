package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.content.Intent;
import android.net.Uri;
import android.provider.MediaStore;
import java.io.File;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.shadows.ShadowActivity;
import org.robolectric.shadows.ShadowToast;

/** Files that the user chooses in other apps: pictures, weights, and where to save the log. */
@RunWith(RobolectricTestRunner.class)
public class PickerTest {
  private static final File PICTURE = new File(System.getProperty("picture"));

  @Rule public final Phone phone = new Phone();

  @Test
  public void aPictureOfTheGalleryIsAskedAbout() throws Exception {
    phone.ready();
    phone.say("do", "picture", "camera", false);
    choose(OtherApp.with(PICTURE).uri(), Intent.ACTION_OPEN_DOCUMENT, "image/*");
    JSONObject picture = phone.await("picture").getJSONObject("picture");
    assertEquals(320, picture.getInt("width"));
    phone.say(
        "do", "settings", "settings", new JSONObject().put("do_sample", false));
    phone.say(
        "do", "send", "text", "What colour is the shape?", "picture", picture.getString("id"));
    JSONObject answer = phone.awaitAnswer().getJSONArray("turns").getJSONObject(1);
    assertEquals("Red.", answer.getString("text"));
    assertTrue(answer.getJSONObject("speed").getDouble("encode_ms") > 0);
  }

  @Test
  public void aPhotoComesFromTheCamera() throws Exception {
    phone.open();
    phone.say("do", "picture", "camera", true);
    phone.idle();
    ShadowActivity.IntentForResult asked = asked();
    assertEquals(MediaStore.ACTION_IMAGE_CAPTURE, asked.intent.getAction());
    Uri target = asked.intent.getParcelableExtra(MediaStore.EXTRA_OUTPUT);
    try (OutputStream photo = phone.app().getContentResolver().openOutputStream(target)) {
      Files.copy(PICTURE.toPath(), photo);
    }
    answer(asked, Activity.RESULT_OK, null);
    assertEquals(320, phone.await("picture").getJSONObject("picture").getInt("width"));
    final File photo = new File(phone.app().getCacheDir(), "photo.jpg");
    phone.await(
        "end of the photo's file",
        new Phone.Condition() {
          @Override
          public boolean holds() {
            return !photo.exists();
          }
        });
  }

  @Test
  public void aCameraThatIsCancelledLeavesNothing() throws Exception {
    phone.open();
    phone.say("do", "picture", "camera", true);
    phone.idle();
    ShadowActivity.IntentForResult asked = asked();
    Uri target = asked.intent.getParcelableExtra(MediaStore.EXTRA_OUTPUT);
    try (OutputStream photo = phone.app().getContentResolver().openOutputStream(target)) {
      photo.write(1);
    }
    File photo = new File(phone.app().getCacheDir(), "photo.jpg");
    assertTrue(photo.exists());
    answer(asked, Activity.RESULT_CANCELED, null);
    assertFalse(photo.exists());
  }

  @Test
  public void aPictureThatCannotBeOpenedIsExplained() throws Exception {
    phone.open();
    phone.awaitProblem();
    phone.say("do", "picture", "camera", false);
    SecurityException failure = new SecurityException("the folder is locked");
    choose(OtherApp.failing(failure).uri(), Intent.ACTION_OPEN_DOCUMENT, "image/*");
    assertError("file_error", "the picture cannot be opened: the folder is locked");
  }

  @Test
  public void theWeightsAreImported() throws Exception {
    phone.open();
    phone.awaitProblem();
    phone.say("do", "import");
    File weights = new File(Phone.bundle(), "weights.safetensors");
    choose(OtherApp.with(weights).uri(), Intent.ACTION_OPEN_DOCUMENT, "*/*");
    assertEquals("yes", phone.awaitModel().getString("verified"));
  }

  @Test
  public void weightsThatCannotBeOpenedAreExplained() throws Exception {
    phone.open();
    phone.awaitProblem();
    phone.say("do", "import");
    SecurityException failure = new SecurityException("the server is offline");
    choose(OtherApp.failing(failure).uri(), Intent.ACTION_OPEN_DOCUMENT, "*/*");
    assertError("file_error", "the weights cannot be opened: the server is offline");
    phone.say("do", "import");
    choose(OtherApp.with(null).uri(), Intent.ACTION_OPEN_DOCUMENT, "*/*");
    String nothing = "the weights cannot be opened: the app that keeps the file sent nothing";
    assertError("file_error", nothing);
    phone.say("do", "hello");
    assertEquals("no_weights", phone.awaitProblem().getString("code")); // as before
  }

  @Test
  public void aPickerMayNotGiveOutTheAppsOwnFiles() throws Exception {
    phone.ready();
    phone.say("do", "picture", "camera", false);
    File own = new File(phone.app().getFilesDir(), "settings.json");
    Files.write(own.toPath(), "{}".getBytes(StandardCharsets.UTF_8));
    choose(Uri.fromFile(own), Intent.ACTION_OPEN_DOCUMENT, "image/*");
    phone.say("do", "picture", "camera", false);
    choose(PhotoProvider.photo(phone.app()), Intent.ACTION_OPEN_DOCUMENT, "image/*");
    phone.say("do", "picture", "camera", false);
    choose(OtherApp.with(PICTURE).uri(), Intent.ACTION_OPEN_DOCUMENT, "image/*");
    phone.await("picture");
    for (JSONObject event : phone.events()) {
      assertFalse(event.toString(), event.getString("event").equals("error"));
    }
  }

  @Test
  public void theLogIsSavedWhereTheUserWants() throws Exception {
    phone.open();
    phone.awaitProblem();
    phone.say("do", "log");
    File target = File.createTempFile("log", ".txt");
    choose(OtherApp.with(target).uri(), Intent.ACTION_CREATE_DOCUMENT, "text/plain");
    String text = new String(Files.readAllBytes(target.toPath()), StandardCharsets.UTF_8);
    assertTrue(text, text.contains("no_weights"));
    phone.say("do", "log");
    SecurityException failure = new SecurityException("read only");
    choose(OtherApp.failing(failure).uri(), Intent.ACTION_CREATE_DOCUMENT, "text/plain");
    assertError("file_error", "the file cannot be saved: read only");
  }

  @Test
  public void aPhoneWithoutPickersSaysSo() throws Exception {
    phone.open();
    shadowOf(phone.app()).checkActivities(true);
    for (Object[] command :
        new Object[][] {
          {"do", "picture", "camera", false},
          {"do", "picture", "camera", true},
          {"do", "import"},
          {"do", "log"}
        }) {
      ShadowToast.reset();
      phone.say(command);
      phone.idle();
      assertEquals(phone.app().getString(R.string.no_picker), ShadowToast.getTextOfLatestToast());
    }
    assertNull(asked());
  }

  /** Chooses a file in the picker that the app has opened. */
  private void choose(Uri chosen, String action, String type) {
    phone.idle();
    ShadowActivity.IntentForResult asked = asked();
    assertEquals(action, asked.intent.getAction());
    assertEquals(type, asked.intent.getType());
    assertTrue(asked.intent.hasCategory(Intent.CATEGORY_OPENABLE));
    answer(asked, Activity.RESULT_OK, new Intent().setData(chosen));
  }

  /** Returns the picker that the app has opened. */
  private ShadowActivity.IntentForResult asked() {
    return shadowOf(phone.activity()).getNextStartedActivityForResult();
  }

  private void answer(ShadowActivity.IntentForResult asked, int result, Intent data) {
    shadowOf(phone.activity()).receiveResult(asked.intent, result, data);
  }

  private void assertError(String code, String message) throws Exception {
    JSONObject error = phone.await("error");
    assertEquals(code, error.getString("code"));
    assertEquals(message, error.getString("message"));
  }
}
