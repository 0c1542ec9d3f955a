package org.minicpmv.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Collections;
import org.json.JSONObject;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;
import org.minicpmv.desktop.LentPath;
import org.minicpmv.desktop.LentStream;

/** Weights that are used where they are, in a file of another app. */
public final class LentTest {
  private Fixture app;
  private File file;

  @Before
  public void setUp() throws Exception {
    app = new Fixture();
    file = new File(app.folder, "chosen.bin");
    Files.write(file.toPath(), Fixture.WEIGHTS);
  }

  @After
  public void tearDown() {
    app.close();
  }

  private File own() {
    return new File(app.files, "bundle/" + Weights.NAME);
  }

  /** Chooses a file to be used where it is. */
  private void keep(File chosen) throws Exception {
    app.assistant.importWeights(LentPath.open(chosen.getPath()), true);
  }

  /** Starts the app with the file as its weights. */
  private JSONObject ready() throws Exception {
    app.start().awaitIdle();
    keep(file);
    return awaitModel();
  }

  private JSONObject awaitModel() throws Exception {
    JSONObject state;
    do {
      state = app.awaitIdle();
    } while (!state.has("model"));
    return state;
  }

  /** Starts the app anew, with the files that it kept. */
  private JSONObject restart() throws Exception {
    app.close();
    return app.start().awaitIdle();
  }

  private void assertAnswers() throws Exception {
    app.say("do", "send", "text", "hello");
    JSONObject answer = app.awaitAnswer().getJSONArray("turns").getJSONObject(1);
    assertEquals("1: hello", answer.getString("text"));
    app.awaitIdle();
  }

  private void assertProblem(JSONObject state, String code, String message) throws Exception {
    assertFalse(state.has("model"));
    assertEquals(code, state.getJSONObject("problem").getString("code"));
    String said = state.getJSONObject("problem").getString("message");
    assertTrue(said, said.contains(message));
  }

  private void assertError(String code) throws Exception {
    assertEquals(code, app.await("error").getString("code"));
  }

  /** Writes other content at another time. */
  private void change(byte[] content) throws Exception {
    Files.write(file.toPath(), content);
    assertTrue(file.setLastModified(file.lastModified() + 5000));
  }

  private static byte[] damaged() {
    byte[] content = Fixture.WEIGHTS.clone();
    content[3]++;
    return content;
  }

  @Test
  public void theFileIsHashedAndUsedWithoutACopy() throws Exception {
    app.start().awaitIdle();
    app.events.clear();
    keep(file);
    while (!app.await("progress").getString("stage").equals("verify")) {
      continue;
    }
    JSONObject state = awaitModel();
    assertEquals("yes", state.getString("verified"));
    assertEquals("chosen.bin", state.getJSONObject("bundle").getString("weights_file"));
    assertFalse(own().exists());
    assertAnswers();
    assertEquals(Collections.emptyList(), app.givenBack);
  }

  @Test
  public void itIsOpenedAgainAfterARestartAndNotHashedAgain() throws Exception {
    ready();
    app.close();
    app.start();
    JSONObject progress = app.await("progress");
    assertEquals("load", progress.getString("stage"));
    assertEquals("yes", awaitModel().getString("verified"));
    assertAnswers();
  }

  @Test
  public void anotherWindowIsLoadedFromTheSameFile() throws Exception {
    ready();
    app.say("do", "settings", "settings", Json.object("window", 1024));
    assertAnswers();
    assertEquals("chosen.bin",
        app.awaitIdle().getJSONObject("bundle").getString("weights_file"));
  }

  @Test
  public void aFileThatChangedIsHashedBeforeItIsUsed() throws Exception {
    ready();
    change(damaged());
    assertProblem(restart(), "damaged_weights", "chosen.bin: its SHA-256 is");
    change(Fixture.WEIGHTS);
    app.say("do", "retry");
    awaitModel();
    assertAnswers();
  }

  @Test
  public void aFileThatWasCutOffIsNamed() throws Exception {
    ready();
    change(new byte[3]);
    assertProblem(restart(), "wrong_weights", "chosen.bin has 3 bytes; the app needs 21");
    change(Fixture.WEIGHTS);
    app.say("do", "retry");
    awaitModel();
  }

  @Test
  public void aFileThatIsGoneComesBack() throws Exception {
    ready();
    File elsewhere = new File(app.folder, "elsewhere");
    assertTrue(file.renameTo(elsewhere));
    assertProblem(restart(), "weights_gone", "no such file");
    assertTrue(elsewhere.renameTo(file)); // the memory card is back
    app.say("do", "retry");
    awaitModel();
    assertAnswers();
  }

  @Test
  public void aRevokedPermissionIsNamed() throws Exception {
    ready();
    File locked = new File(file + ".locked");
    assertTrue(locked.createNewFile());
    assertProblem(restart(), "weights_locked", "permission denied");
    assertTrue(locked.delete());
    keep(file);
    awaitModel();
    assertAnswers();
  }

  @Test
  public void aWrongFileLeavesTheModelInUse() throws Exception {
    app.ready();
    for (byte[] content : new byte[][] {damaged(), new byte[3]}) {
      Files.write(file.toPath(), content);
      keep(file);
      assertError(content.length == 3 ? "wrong_weights" : "damaged_weights");
      JSONObject state = app.awaitIdle();
      assertTrue(state.has("model"));
      assertFalse(state.has("problem"));
      assertFalse(state.getJSONObject("bundle").has("weights_file"));
    }
    assertAnswers();
    assertEquals(2, app.givenBack.size());
  }

  @Test
  public void anotherFileReplacesTheFirst() throws Exception {
    ready();
    File second = new File(app.folder, "second.bin");
    Files.write(second.toPath(), Fixture.WEIGHTS);
    keep(second);
    while (!awaitModel().getJSONObject("bundle").getString("weights_file").equals("second.bin")) {
      continue;
    }
    assertEquals(Collections.singletonList(file.getPath()), app.givenBack);
    assertTrue(file.delete());
    assertTrue(restart().has("model"));
  }

  @Test
  public void aFileThatTheEngineCannotMapIsCopied() throws Exception {
    app.start().awaitIdle();
    File sign = new File(app.files, "bundle/cannot-map");
    assertTrue(sign.createNewFile());
    keep(file);
    JSONObject state = awaitModel();
    assertFalse(state.getJSONObject("bundle").has("weights_file"));
    assertArrayEquals(Fixture.WEIGHTS, Files.readAllBytes(own().toPath()));
    assertEquals(Collections.singletonList(file.getPath()), app.givenBack);
    assertTrue(FileTools.read(new File(app.files, "log.txt")).contains("No such device"));
    assertAnswers();
  }

  @Test
  public void aStreamIsCopied() throws Exception {
    app.start().awaitIdle();
    LentStream stream =
        new LentStream(new ByteArrayInputStream(Fixture.WEIGHTS), -1, "content://stream");
    app.assistant.importWeights(stream, true);
    assertFalse(awaitModel().getJSONObject("bundle").has("weights_file"));
    assertArrayEquals(Fixture.WEIGHTS, Files.readAllBytes(own().toPath()));
  }

  @Test
  public void aCopyEndsTheUseOfTheFile() throws Exception {
    ready();
    app.importStream(new ByteArrayInputStream(Fixture.WEIGHTS), Fixture.WEIGHTS.length, "copy");
    while (awaitModel().getJSONObject("bundle").has("weights_file")) {
      continue;
    }
    assertTrue(own().isFile());
    assertTrue(app.givenBack.contains(file.getPath()));
    assertTrue(file.delete());
    assertTrue(restart().has("model"));
  }

  @Test
  public void theFileReplacesACopy() throws Exception {
    app.start().awaitIdle();
    app.importStream(new ByteArrayInputStream(Fixture.WEIGHTS), Fixture.WEIGHTS.length, "copy");
    awaitModel();
    assertTrue(own().isFile());
    keep(file);
    while (!awaitModel().getJSONObject("bundle").has("weights_file")) {
      continue;
    }
    assertFalse(own().exists());
  }

  @Test
  public void theSelfCheckHashesTheFile() throws Exception {
    ready();
    app.say("do", "check");
    JSONObject first = app.await("check").getJSONArray("results").getJSONObject(0);
    assertEquals("21 bytes", first.getString("detail"));
    app.awaitIdle();
    change(damaged());
    app.say("do", "check");
    first = app.await("check").getJSONArray("results").getJSONObject(0);
    assertFalse(first.getBoolean("ok"));
    assertTrue(first.toString(), first.getString("detail").startsWith("damaged_weights"));
  }

  @Test
  public void aDamagedRecordIsNoChoice() throws Exception {
    LentWeights lent = new LentWeights(app.folder, 1, "0");
    File record = new File(app.folder, "weights.lent.json");
    for (String content : new String[] {"", "[]", "{\"address\": 3}", "{\"addr"}) {
      Files.write(record.toPath(), content.getBytes(StandardCharsets.UTF_8));
      assertNull(lent.address());
    }
  }
}
