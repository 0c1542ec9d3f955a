package org.minicpmv.app;

import static org.robolectric.Shadows.shadowOf;

import android.content.Intent;
import android.os.Bundle;
import android.os.Looper;
import android.view.View;
import android.view.ViewGroup;
import android.webkit.WebView;
import java.io.File;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import org.json.JSONObject;
import org.junit.rules.ExternalResource;
import org.minicpmv.core.Json;
import org.robolectric.Robolectric;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.android.controller.ActivityController;
import org.robolectric.shadow.api.Shadow;

/**
 * The installed app on Android's own code, with the demo's engine for this PC as child process.
 *
 * <p>There is no browser: {@link PageShadow} records what the app sends to its page, and tests call
 * the bridge as the page does. Tests run on Android's main thread, so {@link #await} lets it work.
 */
public final class Phone extends ExternalResource {
  private static final long SECONDS = 120; // until a wait fails
  private static final long STEP_NANOS = TimeUnit.MILLISECONDS.toNanos(5);
  private static final int SHOWN = 10; // events, where a wait fails
  private static final int SHOWN_LENGTH = 500; // characters of each
  private static final String WEIGHTS = "weights.safetensors";

  private ActivityController<MainActivity> screen; // null: not started, or destroyed
  private PageShadow page; // of that screen
  private int seen; // how many of its scripts `await` has passed

  /** What {@link #await} waits for. */
  interface Condition {
    boolean holds() throws Exception;
  }

  @Override
  protected void before() throws Exception {
    PageShadow.renew();
    File libraries = Files.createTempDirectory("lib").toFile();
    File engine = new File(System.getProperty("engine"));
    Files.createSymbolicLink(new File(libraries, "libengine.so").toPath(), engine.toPath());
    app().getApplicationInfo().nativeLibraryDir = libraries.getPath();
    restartProcess(); // Robolectric started the app before it had an engine
  }

  @Override
  protected void after() {
    if (screen != null) {
      screen.close();
    }
    app().assistant().close();
  }

  App app() {
    return (App) RuntimeEnvironment.getApplication();
  }

  MainActivity activity() {
    return screen.get();
  }

  ActivityController<MainActivity> screen() {
    return screen;
  }

  /** Pushes the demo's weights, as `minicpmv sideload` does. */
  Phone pushWeights() throws Exception {
    File target = new File(app().getExternalFilesDir(null), WEIGHTS);
    Files.createSymbolicLink(target.toPath(), new File(bundle(), WEIGHTS).toPath());
    return this;
  }

  /** Opens the app; the page loads and says hello. */
  Phone open() {
    return open(null);
  }

  /** Opens the app with the state that Android saved of an earlier activity; null: none. */
  Phone open(Bundle saved) {
    screen = Robolectric.buildActivity(MainActivity.class).create(saved).start();
    if (saved != null) {
      screen.restoreInstanceState(saved);
    }
    screen.postCreate(saved).resume().visible();
    if (content() instanceof WebView) {
      loadPage();
    }
    return this;
  }

  /** Opens the app with an intent of another app; its page has not loaded yet. */
  void openWithoutPage(Intent intent) {
    screen = Robolectric.buildActivity(MainActivity.class, intent).create(null).start();
    screen.postCreate(null).resume().visible();
  }

  /** Finds the web view, and plays the page that has loaded in it. */
  void loadPage() {
    page = Shadow.extract(webView());
    seen = 0;
    say("do", "hello");
  }

  /** Opens the app, and waits until the model is ready. */
  Phone ready() throws Exception {
    pushWeights();
    restartProcess();
    open();
    awaitModel();
    return this;
  }

  /** Plays the death of the app's process: objects are gone, files stay. */
  void restartProcess() {
    app().assistant().close();
    screen = null;
    app().onCreate();
  }

  /** Sends a command, as the page does. */
  void say(Object... pairs) {
    bridge().send(Json.object(pairs).toString());
  }

  Bridge bridge() {
    return (Bridge) page.getJavascriptInterface("app");
  }

  /** Returns what the screen shows: the web view, or a notice. */
  View content() {
    ViewGroup content = activity().findViewById(android.R.id.content);
    return content.getChildAt(0);
  }

  WebView webView() {
    return (WebView) content();
  }

  PageShadow page() {
    return page;
  }

  /** Waits for an event of the page that no earlier wait has passed. */
  JSONObject await(final String name) throws Exception {
    final JSONObject[] found = new JSONObject[1];
    await(
        "event " + name,
        new Condition() {
          @Override
          public boolean holds() throws Exception {
            found[0] = next(name);
            return found[0] != null;
          }
        });
    return found[0];
  }

  /** Waits until the model is loaded and no job is running; returns that state. */
  JSONObject awaitModel() throws Exception {
    return awaitIdle("model");
  }

  /** Waits until no job is running. */
  void awaitRest() throws Exception {
    awaitIdle("event");
  }

  /** Waits for a state with the abilities of this screen; returns them. */
  String awaitAbilities() throws Exception {
    while (true) {
      String can = await("state").getJSONArray("can").toString();
      if (can.contains("share")) { // else from before the screen
        return can;
      }
    }
  }

  /** Waits until no job is running and something keeps the model from being used; returns it. */
  JSONObject awaitProblem() throws Exception {
    return awaitIdle("problem").getJSONObject("problem");
  }

  /** Asks for the state, and waits until no job is running and the state has a field. */
  private JSONObject awaitIdle(String field) throws Exception {
    idle();
    seen = page.scripts().size(); // a state that was true earlier does not count
    say("do", "hello");
    while (true) {
      JSONObject state = await("state");
      if (state.has(field) && !state.has("job") && !state.has("answering")) {
        return state;
      }
    }
  }

  /** Waits for a chat whose last turn is an answer; returns it. */
  JSONObject awaitAnswer() throws Exception {
    while (true) {
      JSONObject chat = await("chat").optJSONObject("chat");
      if (chat != null && chat.getJSONArray("turns").length() % 2 == 0) {
        return chat;
      }
    }
  }

  /** Lets the main thread work until a condition holds. */
  void await(String what, Condition condition) throws Exception {
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(SECONDS);
    idle();
    while (!condition.holds()) {
      if (System.nanoTime() > end) {
        throw new AssertionError("no " + what + "; the page got " + latest());
      }
      LockSupport.parkNanos(STEP_NANOS);
      idle();
    }
  }

  /** Lets the main thread do all that is due. */
  void idle() {
    shadowOf(Looper.getMainLooper()).idle();
  }

  /** Returns all events that the page of the current screen got. */
  List<JSONObject> events() throws Exception {
    List<JSONObject> events = new ArrayList<>();
    for (String script : page.scripts()) {
      events.add(event(script));
    }
    return events;
  }

  /** Returns the beginnings of the page's latest events. */
  private String latest() {
    StringBuilder text = new StringBuilder();
    List<String> scripts = page.scripts();
    for (String script : scripts.subList(Math.max(0, scripts.size() - SHOWN), scripts.size())) {
      text.append('\n').append(script, 0, Math.min(script.length(), SHOWN_LENGTH));
    }
    return text.toString();
  }

  static File bundle() {
    return new File(System.getProperty("bundle"));
  }

  private JSONObject next(String name) throws Exception {
    while (seen < page.scripts().size()) {
      JSONObject event = event(page.scripts().get(seen++));
      if (event.getString("event").equals(name)) {
        return event;
      }
    }
    return null;
  }

  /** Returns the event in a script `receive(EVENT)`. */
  private static JSONObject event(String script) throws Exception {
    if (script.equals(MainActivity.BACK)) {
      return Json.object("event", "back");
    }
    String begin = "receive(";
    if (!script.startsWith(begin) || !script.endsWith(")")) {
      throw new AssertionError("not an event: " + script);
    }
    return new JSONObject(script.substring(begin.length(), script.length() - 1));
  }
}
