package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import android.content.ClipData;
import android.content.Intent;
import android.net.Uri;
import android.os.Parcel;
import android.os.Parcelable;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;

/** Pictures that other apps share, and intents that are none of that. */
@RunWith(RobolectricTestRunner.class)
public class ShareTest {
  private static final File PICTURE = new File(System.getProperty("picture"));

  @Rule public final Phone phone = new Phone();

  @Test
  public void aSharedPictureIsAskedAbout() throws Exception {
    phone.open();
    phone.awaitProblem();
    send(share(OtherApp.with(PICTURE).uri()));
    assertPicture();
    Intent view = new Intent(Intent.ACTION_VIEW);
    send(view.setDataAndType(OtherApp.with(PICTURE).uri(), "image/png"));
    assertPicture();
    Intent clip = new Intent(Intent.ACTION_SEND).setType("image/png");
    clip.setClipData(ClipData.newRawUri(null, OtherApp.with(PICTURE).uri()));
    send(clip);
    assertPicture();
  }

  @Test
  public void theAppIsStartedByASharedPicture() throws Exception {
    phone.openWithoutPage(share(OtherApp.with(PICTURE).uri()));
    phone.loadPage();
    assertPicture();
  }

  @Test
  public void ofSeveralPicturesThePageAsksWhich() throws Exception {
    phone.open();
    phone.awaitProblem();
    Uri one = OtherApp.with(PICTURE).uri();
    Intent intent = new Intent(Intent.ACTION_SEND_MULTIPLE).setType("image/*");
    ArrayList<Uri> pictures = new ArrayList<>(Arrays.asList(one, one, one));
    send(intent.putParcelableArrayListExtra(Intent.EXTRA_STREAM, pictures));
    JSONArray offered;
    do {
      offered = phone.await("shared").getJSONArray("pictures");
    } while (offered.length() < 3);
    String second = offered.getJSONObject(1).getString("id");
    phone.say("do", "pick", "picture", second);
    assertEquals(second, phone.await("picture").getJSONObject("picture").getString("id"));
  }

  @Test
  public void theListOfRecentAppsDoesNotShareAgain() throws Exception {
    phone.open();
    phone.awaitProblem();
    Intent again = share(Uri.parse("file:///none"));
    send(again.addFlags(Intent.FLAG_ACTIVITY_LAUNCHED_FROM_HISTORY));
    send(share(OtherApp.with(PICTURE).uri()));
    assertPicture();
    assertNoErrors();
  }

  @Test
  public void filesOfThisAppAreRefused() throws Exception {
    phone.open();
    phone.awaitProblem();
    File own = new File(phone.app().getFilesDir(), "settings.json");
    Files.write(own.toPath(), "{}".getBytes(StandardCharsets.UTF_8));
    assertRefused(Uri.fromFile(own), "its app must send it as content:");
    assertRefused(PhotoProvider.photo(phone.app()), "it is a file of this app");
    assertRefused(
        Uri.parse("content://0@org.minicpmv.app.photos/photo.jpg"), "it is a file of this app");
    for (String address : new String[] {"https://example.org/a.png", "CONTENT://a/b", "a.png"}) {
      assertRefused(Uri.parse(address), "its app must send it as content:");
    }
  }

  @Test
  public void whatIsNoPictureIsRefused() throws Exception {
    phone.open();
    phone.awaitProblem();
    File text = File.createTempFile("text", ".png");
    Files.write(text.toPath(), "no picture".getBytes(StandardCharsets.UTF_8));
    send(share(OtherApp.with(text).uri()));
    assertEquals("invalid_picture", phone.await("error").getString("code"));
    Files.write(text.toPath(), "GIF89a".getBytes(StandardCharsets.UTF_8));
    send(share(OtherApp.with(text).uri()));
    JSONObject error = phone.await("error");
    assertTrue(error.toString(), error.getString("message").startsWith("GIF pictures are not"));
    send(share(OtherApp.failing(new SecurityException("no permission")).uri()));
    assertError("the picture cannot be opened: no permission");
    send(share(OtherApp.with(null).uri()));
    assertError("the picture cannot be opened: the app that keeps the file sent nothing");
  }

  @Test
  public void intentsWithoutAPictureAreRefused() throws Exception {
    phone.open();
    phone.awaitProblem();
    Intent[] intents = {
      new Intent(Intent.ACTION_SEND).setType("image/png"),
      new Intent(Intent.ACTION_SEND).putExtra(Intent.EXTRA_STREAM, "a text"),
      new Intent(Intent.ACTION_SEND_MULTIPLE).putExtra(Intent.EXTRA_STREAM, 5),
      new Intent(Intent.ACTION_SEND).putExtra(Intent.EXTRA_STREAM, new Foreign()),
      new Intent(Intent.ACTION_VIEW),
    };
    for (Intent intent : intents) {
      send(intent);
      assertError("the other app sent no picture: there is no file");
    }
  }

  @Test
  public void tooManyPicturesAreRefused() throws Exception {
    phone.open();
    phone.awaitProblem();
    ArrayList<Uri> pictures = new ArrayList<>();
    for (int i = 0; i < 1000; i++) {
      pictures.add(OtherApp.with(PICTURE).uri());
    }
    Intent intent = new Intent(Intent.ACTION_SEND_MULTIPLE).setType("image/*");
    send(intent.putParcelableArrayListExtra(Intent.EXTRA_STREAM, pictures));
    assertError(
        "the picture file is not opened: the app takes 20 pictures at once");
    while (phone.await("shared").getJSONArray("pictures").length() < 20) {
      continue;
    }
  }

  @Test
  public void aRefusalWaitsForThePage() throws Exception {
    phone.openWithoutPage(share(Uri.parse("file:///etc/hosts")));
    phone.idle();
    phone.loadPage();
    assertError(
        "the picture hosts is not opened: its app must send it as content:");
  }

  /** Something that this app's class loader does not find. */
  private static final class Foreign implements Parcelable {
    @Override
    public int describeContents() {
      return 0;
    }

    @Override
    public void writeToParcel(Parcel target, int flags) {}
  }

  private static Intent share(Uri picture) {
    return new Intent(Intent.ACTION_SEND)
        .setType("image/*")
        .putExtra(Intent.EXTRA_STREAM, picture);
  }

  /** Sends an intent to the running app. */
  private void send(Intent intent) {
    phone.screen().newIntent(intent);
  }

  private void assertPicture() throws Exception {
    assertEquals(320, phone.await("picture").getJSONObject("picture").getInt("width"));
  }

  private void assertRefused(Uri picture, String why) throws Exception {
    send(share(picture));
    String name = picture.getLastPathSegment();
    assertError("the picture " + name + " is not opened: " + why);
  }

  private void assertError(String message) throws Exception {
    JSONObject error;
    do {
      error = phone.await("error");
    } while (error.getString("code").equals("no_weights")); // the start's
    assertEquals(message, error.getString("message"));
    assertEquals("file_error", error.getString("code"));
  }

  private void assertNoErrors() throws Exception {
    for (JSONObject event : phone.events()) {
      assertFalse(event.toString(), event.optString("code").equals("file_error"));
    }
  }
}
