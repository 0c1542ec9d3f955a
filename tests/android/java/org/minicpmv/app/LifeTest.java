package org.minicpmv.app;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.content.ComponentCallbacks2;
import android.content.Intent;
import android.content.res.Configuration;
import android.os.Bundle;
import java.io.File;
import java.nio.file.Files;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.system.EngineProcess;
import org.robolectric.RobolectricTestRunner;

/** What survives: the screen, the process, the engine, memory and storage may go at any time. */
@RunWith(RobolectricTestRunner.class)
public class LifeTest {
  private static final File PICTURE = new File(System.getProperty("picture"));

  @Rule public final Phone phone = new Phone();

  @Test
  public void anAnswerGoesOnWhileTheScreenIsRecreated() throws Exception {
    phone.ready();
    EngineProcess engine = EngineProcess.find();
    engine.signal("STOP");
    phone.say("do", "send", "text", "hello");
    phone.screen().recreate();
    phone.loadPage();
    JSONObject shown = phone.await("chat");
    assertEquals("hello", turns(shown.getJSONObject("chat")).getJSONObject(0).getString("text"));
    assertEquals("", shown.getString("partial"));
    engine.signal("CONT");
    assertEquals("eos", turns(phone.awaitAnswer()).getJSONObject(1).getString("stop"));
  }

  @Test
  public void rotationKeepsThePage() throws Exception {
    phone.ready();
    Activity before = phone.activity();
    phone.screen().configurationChange(landscape());
    assertEquals(before, phone.activity());
    phone.say("do", "send", "text", "hello");
    phone.awaitAnswer();
  }

  @Test
  public void chatDraftAndPictureSurviveTheProcess() throws Exception {
    phone.ready();
    phone.say("do", "send", "text", "hello");
    String chat = phone.awaitAnswer().getString("id");
    phone.awaitModel();
    String picture = choosePicture();
    phone.say("do", "draft", "text", "what is this");
    Bundle saved = new Bundle();
    phone.screen().pause().stop().saveInstanceState(saved);
    phone.restartProcess();
    phone.open(saved);
    assertEquals(chat, phone.await("chat").getJSONObject("chat").getString("id"));
    assertEquals(picture, phone.await("picture").getJSONObject("picture").getString("id"));
    assertEquals("what is this", phone.await("draft").getString("text"));
    assertTrue(phone.app().assistant().picture(picture).isFile());
  }

  @Test
  public void theDetailSurvivesTheProcessAndAModelWithoutSlicesIsNotAskedForIt() throws Exception {
    phone.ready();
    phone.say("do", "settings", "settings", new JSONObject().put("max_slices", 9));
    phone.awaitModel();
    phone.restartProcess();
    phone.open();
    JSONObject state = phone.awaitModel();
    assertEquals(9, state.getJSONObject("settings").getInt("max_slices"));
    assertEquals(0, state.getJSONObject("model").optInt("max_slices"));
    phone.say("do", "send", "text", "What colour is the shape?", "picture", choosePicture());
    JSONObject answer = turns(phone.awaitAnswer()).getJSONObject(1);
    assertEquals("eos", answer.getString("stop"));
    assertTrue(answer.getJSONObject("speed").getDouble("encode_ms") > 0);
    for (JSONObject event : phone.events()) {
      assertFalse(event.toString(), event.has("grid"));
    }
  }

  @Test
  public void returningSendsTheChatOnlyIfItChanged() throws Exception {
    phone.ready();
    phone.say("do", "send", "text", "hello");
    phone.awaitAnswer();
    phone.awaitModel();
    phone.idle();
    int before = count("chat");
    phone.screen().pause().stop().restart().start().resume();
    phone.await("state");
    phone.say("do", "settings", "settings", new JSONObject().put("temperature", 1));
    phone.idle();
    assertEquals(before, count("chat"));
  }

  @Test
  public void littleMemoryUnloadsTheEngine() throws Exception {
    phone.ready();
    phone.app().onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN);
    phone.app().onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW);
    phone.awaitModel();
    for (int level :
        new int[] {
          ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL,
          ComponentCallbacks2.TRIM_MEMORY_BACKGROUND,
          ComponentCallbacks2.TRIM_MEMORY_COMPLETE
        }) {
      phone.app().onTrimMemory(level);
      phone.await(
          "end of the engine",
          new Phone.Condition() {
            @Override
            public boolean holds() throws Exception {
              return EngineProcess.isNone();
            }
          });
      phone.awaitRest();
      phone.screen().pause().stop().restart().start().resume();
      phone.awaitModel();
      EngineProcess.find();
    }
  }

  @Test
  public void anEngineThatTheSystemKillsIsStartedAgain() throws Exception {
    phone.ready();
    EngineProcess engine = EngineProcess.find();
    engine.signal("STOP");
    phone.say("do", "send", "text", "hello");
    engine.signal("KILL");
    assertEquals("engine_killed", phone.await("error").getString("code"));
    phone.awaitModel();
    phone.say("do", "hello");
    JSONObject chat = phone.await("chat").getJSONObject("chat");
    assertEquals(1, turns(chat).length()); // the question stays
    phone.say("do", "send", "text", "hello", "chat", chat.getString("id"), "from", 0);
    phone.awaitAnswer();
  }

  @Test
  public void fullStorageIsExplainedAndTheAnswerComes() throws Exception {
    phone.ready();
    phone.say("do", "send", "text", "hello");
    String chat = phone.awaitAnswer().getString("id");
    phone.awaitModel();
    File chats = new File(phone.app().getFilesDir(), "chats");
    File partial = new File(chats, chat + ".json.partial");
    File saved = new File(chats, chat + ".json");
    byte[] before = Files.readAllBytes(saved.toPath());
    Files.createSymbolicLink(partial.toPath(), new File("/dev/full").toPath());
    EngineProcess engine = EngineProcess.find();
    engine.signal("STOP"); // until the question was not saved
    phone.say("do", "send", "text", "again", "chat", chat);
    assertEquals("no_space", phone.await("error").getString("code"));
    assertArrayEquals(before, Files.readAllBytes(saved.toPath()));
    engine.signal("CONT");
    assertEquals(4, turns(phone.awaitAnswer()).length());
  }

  /** Chooses a picture for the next question; returns its id. */
  private String choosePicture() throws Exception {
    phone.say("do", "picture", "camera", false);
    phone.idle();
    Intent asked = shadowOf(phone.activity()).getNextStartedActivityForResult().intent;
    Intent given = new Intent().setData(OtherApp.with(PICTURE).uri());
    shadowOf(phone.activity()).receiveResult(asked, Activity.RESULT_OK, given);
    return phone.await("picture").getJSONObject("picture").getString("id");
  }

  private int count(String name) throws Exception {
    int count = 0;
    for (JSONObject event : phone.events()) {
      count += event.getString("event").equals(name) ? 1 : 0;
    }
    return count;
  }

  private Configuration landscape() {
    Configuration turned =
        new Configuration(phone.activity().getResources().getConfiguration());
    turned.orientation = Configuration.ORIENTATION_LANDSCAPE;
    return turned;
  }

  private static JSONArray turns(JSONObject chat) throws Exception {
    return chat.getJSONArray("turns");
  }
}
