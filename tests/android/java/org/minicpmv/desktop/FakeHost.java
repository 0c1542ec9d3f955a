package org.minicpmv.desktop;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.json.JSONException;
import org.json.JSONObject;
import org.minicpmv.api.Api;
import org.minicpmv.api.Platform;
import org.minicpmv.core.AppPaths;
import org.minicpmv.core.Assistant;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.Host;
import org.minicpmv.core.Json;
import org.minicpmv.core.LentFile;
import org.minicpmv.core.PictureDecoder;

/**
 * Runs the app's logic on a desktop computer with a fake phone, so that a test can drive the page.
 *
 * <p>Arguments: the app's folder, the bundle packaged in it, the path that a PC pushes weights to,
 * and the engine's command line. A line of stdin is a command of the page or, with `host`, the
 * user's next choice: a `path`, or with `offer` one of several pictures that come at once, or
 * `foreground`: the user returns to the app. A line of stdout is an event or, with
 * `host`, a request of the app to the phone. With the property `api`, the name of its model, the app
 * is the variant with a server.
 */
public final class FakeHost implements Host, Platform {
  private static final int WAITING = 2; // as `tests/support/serve_stand_in.py`


  private final File bundle;
  private final String language = System.getProperty("language", "en");
  private final boolean isDark = Boolean.getBoolean("dark");
  private File chosen;
  private Assistant assistant;

  private FakeHost(File bundle) {
    this.bundle = bundle;
  }

  public static void main(String[] arguments) throws IOException, JSONException {
    FakeHost host = new FakeHost(new File(arguments[1]));
    File folder = new File(arguments[0]);
    AppPaths paths =
        new AppPaths(
            Arrays.asList(arguments).subList(3, arguments.length),
            new File(folder, "files"),
            new File(folder, "cache"),
            Collections.singletonList(new File(arguments[2])));
    host.assistant = new Assistant(host, paths);
    String model = System.getProperty("api");
    if (model != null) {
      File kept = new File(paths.files, "api.json");
      Api api = new Api(host.assistant, host, host, kept, model, WAITING);
      host.assistant.extend(api);
      api.foreground();
    }
    String insets = System.getProperty("insets");
    if (insets != null) {
      host.assistant.setInsets(new JSONObject(insets));
    }
    host.listen();
  }

  private void listen() throws IOException, JSONException {
    BufferedReader reader =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = reader.readLine()) != null; ) {
      if (line.startsWith("{\"host\": \"offer\"")) {
        try (InputStream source = new FileInputStream(new JSONObject(line).getString("path"))) {
          assistant.offerPicture(source);
        }
      } else if (line.equals("{\"host\": \"foreground\"}")) {
        assistant.foreground();
      } else if (line.startsWith("{\"host\"")) {
        chosen = new File(new JSONObject(line).getString("path"));
      } else {
        assistant.receive(line);
      }
    }
    assistant.close();
    System.exit(0);
  }

  private synchronized void write(JSONObject line) {
    byte[] bytes = (line + "\n").getBytes(StandardCharsets.UTF_8);
    System.out.write(bytes, 0, bytes.length);
    System.out.flush();
  }

  private static JSONObject asked(String what, Object... pairs) {
    JSONObject line = Json.object(pairs);
    Json.put(line, "host", what);
    return line;
  }

  @Override
  public void toPage(JSONObject event) {
    write(event);
  }

  @Override
  public void setBusy(boolean busy) {
    write(asked("working", "busy", busy));
  }

  @Override
  public void setServing(boolean isServing) {
    write(asked("serving", "on", isServing));
  }

  @Override
  public void setAwake(boolean isAwake) {}

  @Override
  public void prepareBackground() {}

  @Override
  public void choosePicture(boolean camera) {
    try (InputStream source = new FileInputStream(chosen)) {
      assistant.addPicture(source);
    } catch (IOException e) {
      throw new IllegalStateException(e);
    }
  }

  @Override
  public void chooseWeights(boolean isKept) {
    try {
      assistant.importWeights(openLent(chosen.getPath()), isKept);
    } catch (EngineException e) {
      throw new IllegalStateException(e);
    }
  }

  @Override
  public LentFile openLent(String address) throws EngineException {
    return LentPath.open(address);
  }

  @Override
  public void giveBack(String address) {}

  @Override
  public void copy(String text) {
    write(asked("copy", "text", text));
  }

  @Override
  public void save(String name, String text) {
    write(asked("save", "name", name, "text", text));
  }

  @Override
  public List<String> abilities() {
    return Arrays.asList("share", "speak", "dictate", "back");
  }

  @Override
  public void share(String text) {
    write(asked("share", "text", text));
  }

  @Override
  public void speak(String text) {
    write(asked("speak", "text", text));
    assistant.setSpeaking(text != null);
  }

  @Override
  public void dictate() {
    assistant.addDictated("dictated");
  }

  @Override
  public double temperature() {
    return 36.5;
  }

  @Override
  public void setTakesBack(boolean takesBack) {
    write(asked("back", "takes", takesBack));
  }

  @Override
  public void leave() {
    write(asked("leave"));
  }

  @Override
  public String language() {
    return language;
  }

  @Override
  public boolean isDark() {
    return isDark;
  }

  @Override
  public void setDark(boolean isDark) {}

  @Override
  public JSONObject about() {
    return Json.object(
        "app", System.getProperty("version"),
        "phone", "a desktop",
        "android", "14",
        "memory_bytes", 8L << 30,
        "free_space_bytes", 50L << 30);
  }

  @Override
  public long availableMemory() {
    return -1;
  }

  @Override
  public InputStream bundleFile(String name) throws IOException {
    if (name.equals("weights.safetensors")) {
      throw new FileNotFoundException(name); // no weights are embedded
    }
    return new FileInputStream(new File(bundle, name));
  }

  @Override
  public InputStream configFile(String name) throws IOException {
    return new FileInputStream(new File(System.getProperty("configs"), name));
  }

  @Override
  public PictureDecoder decoder() {
    return new DesktopPictureDecoder();
  }
}
