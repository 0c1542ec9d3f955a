package org.minicpmv.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;

/**
 * The app without its screen: the page's commands in, events out. What `chat --web` does, too, is
 * tested by tests/android/contract.
 */
public final class AssistantTest {
  private Fixture app;

  @Before
  public void setUp() throws Exception {
    app = new Fixture();
  }

  @After
  public void tearDown() {
    app.close();
  }

  private static JSONObject turn(JSONObject chat, int index) throws Exception {
    return chat.getJSONArray("turns").getJSONObject(index);
  }

  @Test
  public void aPictureIsEncodedOnceAndSurvivesTheEngine() throws Exception {
    app.ready().say("do", "picture", "camera", true);
    JSONObject picture = app.await("picture").getJSONObject("picture");
    assertEquals(5, picture.getInt("width"));
    assertNotNull(app.assistant.picture(picture.getString("id")));
    app.say("do", "send", "text", "what", "picture", picture.getString("id"));
    JSONObject chat = app.awaitAnswer();
    assertEquals("1: what seeing 5x3", turn(chat, 1).getString("text"));
    assertEquals(5.0, turn(chat, 1).getJSONObject("speed").getDouble("encode_ms"), 0);
    app.awaitIdle();
    app.say("do", "send", "text", "signal 9", "chat", chat.getString("id"));
    assertEquals("engine_killed", app.await("error").getString("code"));
    app.awaitIdle();
    app.say("do", "send", "text", "and now", "chat", chat.getString("id"));
    app.await("text");
    JSONArray turns = app.awaitAnswer().getJSONArray("turns");
    // The embeddings were saved: nothing is encoded again.
    assertEquals("5: and now seeing 5x3 again", turns.getJSONObject(5).getString("text"));
    assertFalse(turns.getJSONObject(5).getJSONObject("speed").has("encode_ms"));
  }

  @Test
  public void aPictureThatTheEngineEvictedIsSentAgain() throws Exception {
    app.ready().say("do", "picture", "camera", false);
    String picture = app.await("picture").getJSONObject("picture").getString("id");
    app.say("do", "send", "text", "what", "picture", picture);
    String id = app.awaitAnswer().getString("id");
    app.awaitIdle();
    Files.createFile(new File(app.files, "bundle/forget-pictures").toPath());
    app.say("do", "send", "text", "and now", "chat", id);
    app.await("text");
    assertTrue(turn(app.awaitAnswer(), 3).getString("text").contains("seeing 5x3"));
  }

  /** Packages a model that cuts a picture into up to 9 slices. */
  private void carrySlices() throws Exception {
    JSONObject model = Json.object("slice_mode", true, "max_slice_nums", 9);
    app.carry(Fixture.WEIGHTS, model);
  }

  @Test
  public void aPictureIsCutAsTheSettingsSayNow() throws Exception {
    carrySlices();
    app.ready().say("do", "picture", "camera", false);
    String picture = app.await("picture").getJSONObject("picture").getString("id");
    app.say("do", "send", "text", "what", "picture", picture);
    JSONObject chat = app.awaitAnswer();
    assertEquals("1: what seeing 5x3 in 5", turn(chat, 1).getString("text"));
    Object[][] choices = {
      {9, "in 10", true}, {1000, "in 10", false}, {1, "", true}, {4, "in 5", false},
    };
    for (int i = 0; i < choices.length; i++) {
      app.awaitIdle();
      app.say("do", "settings", "settings", Json.object("max_slices", choices[i][0]));
      app.say("do", "send", "text", "now", "chat", chat.getString("id"));
      app.await("text");
      JSONObject answer = turn(app.awaitAnswer(), 2 * i + 3);
      String seen = (2 * i + 3) + ": now seeing 5x3 " + choices[i][1];
      assertEquals(seen.trim(), answer.getString("text"));
      // A detail that was asked for before needs no encoding.
      assertEquals(choices[i][2], answer.getJSONObject("speed").has("encode_ms"));
    }
    app.awaitIdle();
    app.say("do", "send", "text", "signal 9", "chat", chat.getString("id"));
    assertEquals("engine_killed", app.await("error").getString("code"));
    app.awaitIdle();
    app.say("do", "settings", "settings", Json.object("max_slices", 9));
    app.say("do", "send", "text", "and", "chat", chat.getString("id"));
    app.await("text");
    assertEquals("13: and seeing 5x3 in 10 again", turn(app.awaitAnswer(), 13).getString("text"));
    app.awaitIdle();
    String[] kept = new File(app.files, "pictures").list();
    Arrays.sort(kept);
    assertEquals(
        Arrays.asList("", ".1.embeddings", ".4.embeddings", ".9.embeddings", ".jpg"),
        suffixes(kept, picture));
    app.say("do", "delete", "chat", chat.getString("id"));
    app.awaitIdle();
    app.close();
    app.start();
    assertEquals(0, new File(app.files, "pictures").list().length);
  }

  private static List<String> suffixes(String[] names, String prefix) {
    List<String> suffixes = new ArrayList<>();
    for (String name : names) {
      assertTrue(name, name.startsWith(prefix));
      suffixes.add(name.substring(prefix.length()));
    }
    return suffixes;
  }

  @Test
  public void theGridOfAPictureIsPartOfItsProgress() throws Exception {
    carrySlices();
    app.ready().say("do", "picture", "camera", false);
    String picture = app.await("picture").getJSONObject("picture").getString("id");
    Files.createFile(new File(app.files, "bundle/wait").toPath());
    app.say("do", "send", "text", "what", "picture", picture);
    JSONObject event = app.await("progress");
    while (!event.getString("stage").equals("encode") || event.getInt("done") < 5) {
      event = app.await("progress");
    }
    assertEquals("[2,2]", event.getJSONArray("grid").toString());
    assertEquals(10, event.getInt("total"));
    app.events.clear();
    app.say("do", "hello"); // a page that comes later
    JSONObject job = app.await("state").getJSONObject("job");
    assertEquals("[2,2]", job.getJSONArray("grid").toString());
    assertEquals(5, job.getInt("done"));
    app.say("do", "stop");
    assertFalse(app.awaitIdle().has("job"));
  }

  @Test
  public void invalidPicturesAreRefused() throws Exception {
    app.ready().assistant.addPicture(new ByteArrayInputStream(new byte[0]));
    assertEquals("invalid_picture", app.await("error").getString("code"));
    app.say("do", "send", "text", "what", "picture", "gone");
    assertEquals("invalid_picture", app.await("error").getString("code"));
    assertEquals(0, new File(app.files, "pictures").list().length);
  }

  @Test
  public void anAnswerCanBeStopped() throws Exception {
    app.ready().say("do", "send", "text", "slow");
    app.await("text");
    assertTrue(app.working);
    app.say("do", "stop");
    JSONObject answer = turn(app.awaitAnswer(), 1);
    assertEquals("cancelled", answer.getString("stop"));
    assertTrue(answer.getString("text").startsWith("bla"));
    app.awaitIdle();
    assertFalse(app.working);
  }

  @Test
  public void aQuestionWaitsForTheLoadingModel() throws Exception {
    app.placeWeights();
    app.start();
    while (!app.await("state").has("settings")) {
      continue; // before that, the app has not read its bundle
    }
    app.say("do", "send", "text", "early");
    assertEquals("1: early", turn(app.awaitAnswer(), 1).getString("text"));
    app.awaitIdle();
    assertEquals(Arrays.asList(true, true, false), app.worked); // busy in between, too
  }

  @Test
  public void aDeadEngineIsRestartedAndTheChatIsKept() throws Exception {
    app.ready().say("do", "send", "text", "die 3");
    JSONObject error = app.await("error");
    assertEquals("engine_died", error.getString("code"));
    assertTrue(error.getString("message").contains("last words"));
    JSONObject chat = app.awaitAnswer();
    assertEquals("half an ans", turn(chat, 1).getString("text"));
    assertEquals("failed", turn(chat, 1).getString("stop"));
    assertTrue(app.awaitIdle().has("model"));
    app.say("do", "send", "text", "again", "chat", chat.getString("id"), "from", 0);
    app.await("text");
    assertEquals("1: again", turn(app.awaitAnswer(), 1).getString("text"));
  }

  @Test
  public void theCauseOfDeathIsReported() throws Exception {
    app.ready();
    for (String[] pair :
        new String[][] {
          {"signal 31", "engine_forbidden"}, {"signal 11", "engine_crashed"},
        }) {
      app.say("do", "send", "text", pair[0]);
      assertEquals(pair[1], app.await("error").getString("code"));
      app.awaitIdle();
    }
    app.say("do", "send", "text", "garbage");
    assertEquals("engine_crashed", app.await("error").getString("code"));
  }

  @Test
  public void anEngineThatKeepsDyingIsNotRestartedUntilTheUserAsks() throws Exception {
    app.ready();
    JSONObject state = null;
    for (int i = 0; i < 3; i++) {
      app.say("do", "send", "text", "die 1");
      app.await("error");
      state = app.awaitIdle();
    }
    assertEquals("engine_died", state.getJSONObject("problem").getString("code"));
    app.say("do", "retry");
    while (!app.awaitIdle().has("model")) {
      continue; // the earlier state
    }
  }

  @Test
  public void anEngineThatDoesNotStartIsReported() throws Exception {
    app.placeWeights();
    app.start(Collections.singletonList(new File(app.folder, "none").getPath()));
    JSONObject state = app.awaitIdle();
    for (int i = 0; i < 3 && !state.has("problem"); i++) {
      state = app.awaitIdle();
    }
    assertEquals("no_engine", state.getJSONObject("problem").getString("code"));
  }

  @Test
  public void withoutWeightsTheUserIsAsked() throws Exception {
    JSONObject state = app.start().awaitIdle();
    assertEquals("no_weights", state.getJSONObject("problem").getString("code"));
    assertEquals(app.external.getPath(), state.getJSONArray("places").getString(0));
    app.placeWeights();
    app.say("do", "retry");
    while (!app.awaitIdle().has("model")) {
      continue;
    }
  }

  @Test
  public void weightsAreImported() throws Exception {
    app.start().awaitIdle();
    app.say("do", "import");
    JSONObject state = app.awaitIdle();
    while (!state.has("model")) {
      state = app.awaitIdle();
    }
    assertEquals("yes", state.getString("verified"));
  }

  @Test
  public void anImportCanBeStopped() throws Exception {
    app.start().awaitIdle();
    final CountDownLatch read = new CountDownLatch(1);
    InputStream endless =
        new InputStream() {
          private int count;

          @Override
          public int read() {
            return 0;
          }

          @Override
          public int read(byte[] target, int offset, int length) throws IOException {
            if (count++ > 0) {
              app.say("do", "stop");
            }
            read.countDown();
            return 1;
          }
        };
    app.importStream(endless, -1, "file");
    read.await();
    JSONObject state = app.awaitIdle();
    assertEquals("no_weights", state.getJSONObject("problem").getString("code"));
    assertFalse(new File(app.files, "bundle/" + Weights.PARTIAL).exists());
  }

  @Test
  public void truncatedAndForeignWeightsAreRefused() throws Exception {
    Files.write(app.external.toPath(), "these are".getBytes(StandardCharsets.UTF_8));
    JSONObject state = app.start().awaitIdle();
    assertEquals("wrong_weights", state.getJSONObject("problem").getString("code"));
    app.importStream(new ByteArrayInputStream(new byte[3]), 3, "file");
    assertEquals("wrong_weights", app.await("error").getString("code"));
    byte[] other = Fixture.WEIGHTS.clone();
    other[0]++;
    app.awaitIdle();
    app.importStream(new ByteArrayInputStream(other), -1, "file");
    assertEquals("damaged_weights", app.await("error").getString("code"));
  }

  @Test
  public void damagedWeightsAreDetectedInTheBackground() throws Exception {
    byte[] other = Fixture.WEIGHTS.clone();
    other[0]++;
    Files.write(app.external.toPath(), other);
    app.start();
    assertEquals("damaged_weights", app.await("error").getString("code"));
    JSONObject state = app.awaitIdle();
    while (state.has("model")) {
      state = app.awaitIdle();
    }
    assertEquals("damaged_weights", state.getJSONObject("problem").getString("code"));
    app.say("do", "send", "text", "hello");
    assertEquals("damaged_weights", app.await("error").getString("code"));
  }

  @Test
  public void anAppUpdateNeedsItsOwnWeights() throws Exception {
    app.ready().close();
    app.carry("weights of another bundle".getBytes(StandardCharsets.UTF_8));
    JSONObject state = app.start().awaitIdle();
    while (!state.has("problem")) {
      state = app.awaitIdle();
    }
    assertEquals("wrong_weights", state.getJSONObject("problem").getString("code"));
  }

  @Test
  public void embeddedWeightsAreCopiedOut() throws Exception {
    app.carried.put(Weights.NAME, Fixture.WEIGHTS);
    assertTrue(app.start().awaitIdle().has("model"));
  }

  @Test
  public void theEngineIsUnloadedInTheBackgroundAndReloaded() throws Exception {
    app.ready().say("do", "send", "text", "one");
    String id = app.awaitAnswer().getString("id");
    app.awaitIdle();
    app.assistant.trimMemory();
    JSONObject state = app.await("state");
    while (state.has("model") || state.has("job")) {
      state = app.await("state");
    }
    app.assistant.foreground();
    app.awaitIdle();
    app.say("do", "send", "text", "two", "chat", id);
    app.await("text");
    assertEquals("3: two", turn(app.awaitAnswer(), 3).getString("text"));
  }

  @Test
  public void settingsReachTheEngine() throws Exception {
    app.ready().say(
        "do", "settings", "settings",
        Json.object("window", 256, "threads", 2, "top_p", 7, "language", "en"));
    JSONObject state = app.awaitIdle();
    assertEquals(256, state.getJSONObject("settings").getInt("window"));
    assertEquals(0.8, state.getJSONObject("settings").getDouble("top_p"), 0); // 7 is out of range
    assertEquals("en", state.getString("language"));
    app.say("do", "send", "text", "one");
    app.awaitAnswer();
    state = app.awaitIdle();
    assertEquals(256, state.getJSONObject("model").getInt("window"));
    assertEquals("2", state.getJSONObject("engine").getString("threads"));
    app.say("do", "settings");
    assertEquals(512, app.awaitIdle().getJSONObject("settings").getInt("window"));
  }

  @Test
  public void theSelfCheckReportsItsResults() throws Exception {
    app.ready().say("do", "check");
    JSONArray results = app.await("check").getJSONArray("results");
    for (JSONObject result : Json.objects(results)) {
      assertTrue(result.toString(), result.getBoolean("ok"));
    }
    assertEquals("answer", results.getJSONObject(5).getString("name"));
  }

  @Test
  public void chatsAreDeletedWithTheirPictures() throws Exception {
    app.ready().say("do", "picture", "camera", true);
    String picture = app.await("picture").getJSONObject("picture").getString("id");
    app.say("do", "send", "text", "slow", "picture", picture);
    app.await("text");
    app.events.clear();
    app.say("do", "hello");
    String id = app.await("chat").getJSONObject("chat").getString("id");
    app.say("do", "delete", "chat", id); // during its answer
    assertEquals(0, app.awaitIdle().getJSONArray("chats").length());
    assertEquals(0, new File(app.files, "chats").list().length);
    app.close();
    app.start().awaitIdle();
    assertEquals(0, new File(app.files, "pictures").list().length);
  }

  @Test
  public void picturesOfADamagedChatStay() throws Exception {
    app.ready().say("do", "picture", "camera", true);
    String picture = app.await("picture").getJSONObject("picture").getString("id");
    app.say("do", "send", "text", "what", "picture", picture);
    String id = app.awaitAnswer().getString("id");
    app.awaitIdle();
    app.close();
    File file = new File(app.files, "chats/" + id + ".json");
    byte[] whole = Files.readAllBytes(file.toPath());
    byte[] damaged = Arrays.copyOf(whole, whole.length - 9);
    Files.write(file.toPath(), damaged);
    int count = new File(app.files, "pictures").list().length;
    assertEquals(0, app.start().awaitIdle().getJSONArray("chats").length());
    app.close();
    assertArrayEquals(damaged, Files.readAllBytes(file.toPath()));
    assertEquals(count, new File(app.files, "pictures").list().length);
    Files.write(file.toPath(), whole); // repaired
    assertEquals(1, app.start().awaitIdle().getJSONArray("chats").length());
    assertTrue(app.assistant.picture(picture).isFile());
  }

  @Test
  public void theLogDoesNotContainChats() throws Exception {
    app.ready().say("do", "send", "text", "my secret");
    app.awaitAnswer();
    app.say("do", "log");
    app.say("do", "copy", "text", "a copy");
    assertTrue(app.saved.contains("engine started"));
    assertFalse(app.saved.contains("secret"));
    assertEquals("a copy", app.copied);
  }
}
