package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.content.Intent;
import android.content.UriPermission;
import android.net.Uri;
import java.io.File;
import java.io.RandomAccessFile;
import java.nio.file.Files;
import java.util.List;
import org.json.JSONObject;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.shadows.ShadowActivity;

/** Weights that are used where they are, in another app, by the demo's engine. */
@RunWith(RobolectricTestRunner.class)
public class LentFileTest {
  @Rule public final Phone phone = new Phone();

  private File weights;

  @Before
  public void open() throws Exception {
    weights = File.createTempFile("chosen", ".bin");
    File demo = new File(Phone.bundle(), "weights.safetensors");
    Files.write(weights.toPath(), Files.readAllBytes(demo.toPath()));
    phone.open();
    phone.awaitProblem();
  }

  /** Chooses a file of another app, to be used where it is. */
  private void choose(Uri chosen) {
    phone.say("do", "import", "keep", true);
    phone.idle();
    ShadowActivity.IntentForResult asked =
        shadowOf(phone.activity()).getNextStartedActivityForResult();
    assertEquals(Intent.ACTION_OPEN_DOCUMENT, asked.intent.getAction());
    shadowOf(phone.activity())
        .receiveResult(asked.intent, Activity.RESULT_OK, new Intent().setData(chosen));
  }

  private void restart() {
    phone.restartProcess();
    phone.open();
  }

  private void ask() throws Exception {
    phone.say("do", "settings", "settings", new JSONObject().put("do_sample", false));
    phone.say("do", "send", "text", "hello");
    JSONObject answer = phone.awaitAnswer().getJSONArray("turns").getJSONObject(1);
    assertFalse(answer.getString("text").isEmpty());
  }

  private List<UriPermission> permissions() {
    return phone.app().getContentResolver().getPersistedUriPermissions();
  }

  private File own() {
    return new File(phone.app().getFilesDir(), "bundle/weights.safetensors");
  }

  private static String file(JSONObject state) throws Exception {
    return state.getJSONObject("bundle").optString("weights_file");
  }

  @Test
  public void theEngineUsesTheDescriptorAndOpensTheFileAfterARestart() throws Exception {
    choose(OtherApp.with(weights).uri());
    assertEquals(weights.getName(), file(phone.awaitModel()));
    assertFalse(own().exists());
    assertEquals(1, permissions().size());
    ask();
    restart();
    assertEquals("yes", phone.awaitModel().getString("verified"));
    ask();
  }

  @Test
  public void aPartOfAFileIsCopied() throws Exception {
    choose(OtherApp.embedding(weights).uri());
    assertEquals("", file(phone.awaitModel()));
    assertTrue(own().isFile());
    assertEquals(0, permissions().size());
    ask();
  }

  @Test
  public void aRevokedPermissionAndADeletedFileAreTwoProblems() throws Exception {
    choose(OtherApp.with(weights).uri());
    phone.awaitModel();
    OtherApp.failing(new SecurityException("permission denial"));
    restart();
    assertEquals("weights_locked", phone.awaitProblem().getString("code"));
    OtherApp.with(new File("/nowhere"));
    phone.say("do", "retry");
    assertEquals("weights_gone", phone.awaitProblem().getString("code"));
    OtherApp.with(weights);
    phone.say("do", "retry");
    phone.awaitModel();
    ask();
  }

  @Test
  public void weightsOfAnotherProgramAreRefused() throws Exception {
    try (RandomAccessFile changed = new RandomAccessFile(weights, "rw")) {
      long last = weights.length() - 1;
      changed.seek(last);
      int value = changed.read();
      changed.seek(last);
      changed.write(~value);
    }
    choose(OtherApp.with(weights).uri());
    assertEquals("damaged_weights", phone.await("error").getString("code"));
    assertEquals("damaged_weights", phone.awaitProblem().getString("code"));
    assertEquals(0, permissions().size());
  }

  @Test
  public void aFileThatIsCutOffInUseEndsTheEngineNotTheApp() throws Exception {
    choose(OtherApp.with(weights).uri());
    phone.awaitModel();
    try (RandomAccessFile cut = new RandomAccessFile(weights, "rw")) {
      cut.setLength(0);
    }
    phone.say("do", "send", "text", "hello");
    assertEquals("engine_crashed", phone.await("error").getString("code"));
    assertEquals("wrong_weights", phone.awaitProblem().getString("code"));
  }
}
