package org.minicpmv.core;

import java.awt.image.BufferedImage;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import javax.imageio.ImageIO;
import org.json.JSONObject;
import org.minicpmv.desktop.DesktopPictureDecoder;
import org.minicpmv.desktop.LentPath;
import org.minicpmv.desktop.LentStream;

/** An assistant in a temporary folder, with a fake engine and a page that records events. */
final class Fixture implements Host, AutoCloseable {
  static final byte[] WEIGHTS = "these are the weights".getBytes(StandardCharsets.UTF_8);
  private static final long SECONDS = 60;

  final File folder;
  final File files;
  final File external; // the weights file that a PC pushes
  final Map<String, byte[]> carried = new HashMap<>();
  final BlockingQueue<JSONObject> events = new LinkedBlockingQueue<>();
  volatile boolean working;
  final List<Boolean> worked = Collections.synchronizedList(new ArrayList<Boolean>());
  final List<String> givenBack = Collections.synchronizedList(new ArrayList<String>());
  volatile String copied;
  volatile String saved;
  volatile PictureDecoder decoder = new DesktopPictureDecoder();
  Assistant assistant;

  Fixture() throws Exception {
    folder = Files.createTempDirectory("assistant").toFile();
    files = new File(folder, "files");
    external = new File(folder, "beside.safetensors");
    carry(WEIGHTS);
  }

  /** Packages a bundle with these weights into the app; its model cuts no pictures. */
  void carry(byte[] weights) throws Exception {
    carry(weights, new JSONObject());
  }

  /** The same with a model's configuration. */
  void carry(byte[] weights, JSONObject model) throws Exception {
    JSONObject file = Json.object("size", weights.length, "sha256", sha256(weights));
    JSONObject manifest =
        Json.object(
            "architecture", "MiniCPMV",
            "model", model,
            "files",
                Json.object(
                    "weights.safetensors", file, "generation.json", new JSONObject(),
                    "engine/host", new JSONObject()),
            "targets", Json.object("host", Json.object("program_id", "program")));
    carried.put("bundle.json", manifest.toString().getBytes(StandardCharsets.UTF_8));
    String generation = "{\"window\": 512, \"sets\": {}}";
    carried.put("generation.json", generation.getBytes(StandardCharsets.UTF_8));
  }

  static List<String> fakeEngine() {
    return Arrays.asList(System.getProperty("python"), System.getProperty("fake_engine"));
  }

  void placeWeights() throws IOException {
    Files.write(external.toPath(), WEIGHTS);
  }

  /** Starts the app with the fake engine. */
  Fixture start() throws Exception {
    return start(fakeEngine());
  }

  Fixture start(List<String> engine) throws Exception {
    events.clear();
    File cache = new File(folder, "cache");
    List<File> pushed = Collections.singletonList(external);
    assistant = new Assistant(this, new AppPaths(engine, files, cache, pushed));
    return this;
  }

  /** Starts the app with weights in place, and waits until the model is ready. */
  Fixture ready() throws Exception {
    placeWeights();
    start();
    while (!awaitIdle().getString("verified").equals("yes")) {
      continue; // the weights are hashed in the background
    }
    return this;
  }

  void say(Object... pairs) {
    assistant.receive(Json.object(pairs).toString());
  }

  /** Waits for an event. */
  JSONObject await(String name) throws Exception {
    while (true) {
      JSONObject event = events.poll(SECONDS, TimeUnit.SECONDS);
      if (event == null) {
        throw new AssertionError("no event " + name);
      }
      if (event.getString("event").equals(name)) {
        return event;
      }
    }
  }

  /** Waits until no job is running, ignoring earlier events; returns that state. */
  JSONObject awaitIdle() throws Exception {
    events.clear();
    say("do", "hello");
    while (true) {
      JSONObject state = await("state");
      boolean isReady = state.has("problem") || state.has("model");
      if (!state.has("job") && !state.has("answering") && isReady) {
        return state;
      }
    }
  }

  /** Waits for a complete answer, and returns its chat. */
  JSONObject awaitAnswer() throws Exception {
    while (true) {
      JSONObject chat = await("chat").optJSONObject("chat");
      if (chat != null && chat.getJSONArray("turns").length() % 2 == 0) {
        return chat;
      }
    }
  }

  @Override
  public void close() {
    if (assistant != null) {
      assistant.close();
    }
  }

  @Override
  public void toPage(JSONObject event) {
    events.add(event);
  }

  @Override
  public void setBusy(boolean busy) {
    working = busy;
    worked.add(busy);
  }

  @Override
  public void prepareBackground() {}

  @Override
  public void choosePicture(boolean camera) {
    assistant.addPicture(new ByteArrayInputStream(png(5, 3)));
  }

  @Override
  public void chooseWeights(boolean isKept) {
    importStream(new ByteArrayInputStream(WEIGHTS), WEIGHTS.length, "file");
  }

  /** Imports what can only be copied. */
  void importStream(InputStream source, long size, String address) {
    assistant.importWeights(new LentStream(source, size, address), false);
  }

  @Override
  public LentFile openLent(String address) throws EngineException {
    return LentPath.open(address);
  }

  @Override
  public void giveBack(String address) {
    givenBack.add(address);
  }

  @Override
  public void copy(String text) {
    copied = text;
  }

  @Override
  public void save(String name, String text) {
    saved = text;
  }

  @Override
  public List<String> abilities() {
    return Collections.emptyList();
  }

  @Override
  public void share(String text) {}

  @Override
  public void speak(String text) {}

  @Override
  public void dictate() {}

  @Override
  public double temperature() {
    return Double.NaN;
  }

  @Override
  public void setTakesBack(boolean takesBack) {}

  @Override
  public void leave() {}

  @Override
  public String language() {
    return "zh";
  }

  @Override
  public boolean isDark() {
    return false;
  }

  @Override
  public void setDark(boolean isDark) {}

  @Override
  public JSONObject about() {
    return Json.object("app", "0");
  }

  @Override
  public long availableMemory() {
    return -1;
  }

  @Override
  public InputStream bundleFile(String name) throws IOException {
    byte[] content = carried.get(name);
    if (content == null) {
      throw new FileNotFoundException(name);
    }
    return new ByteArrayInputStream(content);
  }

  @Override
  public InputStream configFile(String name) throws IOException {
    return new FileInputStream(new File(System.getProperty("configs"), name));
  }

  @Override
  public PictureDecoder decoder() {
    return decoder;
  }

  /** Returns a PNG of this size. */
  static byte[] png(int width, int height) {
    ByteArrayOutputStream content = new ByteArrayOutputStream();
    try {
      ImageIO.write(new BufferedImage(width, height, BufferedImage.TYPE_INT_RGB), "png", content);
    } catch (IOException e) {
      throw new IllegalStateException("writing to memory cannot fail", e);
    }
    return content.toByteArray();
  }

  static String sha256(byte[] content) throws Exception {
    StringBuilder text = new StringBuilder();
    for (byte b : MessageDigest.getInstance("SHA-256").digest(content)) {
      text.append(String.format("%02x", b));
    }
    return text.toString();
  }
}
