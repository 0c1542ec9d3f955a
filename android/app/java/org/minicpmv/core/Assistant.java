package org.minicpmv.core;

import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/**
 * The app without its screen: takes commands from the page, has the work done, tells the page.
 *
 * <p>android/page/BRIDGE.md lists commands and events. Its methods come from any thread and return
 * at once.
 */
public final class Assistant implements Closeable, Work.Changes {
  private static final String LOG_NAME = "minicpmv-log.txt";
  private static final List<String> ABILITIES =
      Arrays.asList("camera", "import", "check", "threads", "notices");

  private final Host host;
  private final Places places;
  private final Log log;
  private final ChatStore chats;
  private final Pictures pictures;
  private final Work work;
  private final Object publishing = new Object(); // what is published last is the latest
  private volatile String current; // the chat on the page; null: a new one
  private volatile JSONObject chosen; // a picture that is not asked about yet; null: none

  public Assistant(Host host, Places places) throws IOException {
    this.host = host;
    this.places = places;
    FileTools.makeFolder(places.files);
    FileTools.makeFolder(places.cache);
    log = new Log(new File(places.files, "log.txt"));
    chats = new ChatStore(new File(places.files, "chats"), log);
    pictures = new Pictures(new File(places.files, "pictures"), host.decoder());
    if (chats.isWhole()) {
      pictures.keepOnly(chats.pictures());
    }
    work = new Work(host, places, log, chats, pictures, this);
    work.prepare();
  }

  /** Takes a command of the page; what is no command is noted and ignored. */
  public void receive(String text) {
    try {
      JSONObject command = Json.parse(text);
      handle(command.optString("do"), command);
    } catch (EngineException e) {
      fail(e);
    } catch (JSONException | IllegalArgumentException e) {
      log.add("the page sent what is no command: " + e.getMessage());
    }
  }

  /** Takes the picture that the user chose; does not close the source. */
  public void addPicture(InputStream source) {
    try {
      chosen = pictures.add(source);
      host.toPage(Json.object("event", "picture", "picture", chosen));
    } catch (EngineException e) {
      fail(e);
    }
  }

  /** Takes the weights that the user chose, and closes the source; -1: of unknown length. */
  public void importWeights(InputStream source, long length) {
    try {
      work.importWeights(source, length);
    } catch (EngineException e) {
      fail(e);
    }
  }

  /** The app is not seen and the system wants memory: an idle engine goes, chats stay. */
  public void trimMemory() {
    work.rest();
  }

  /** The app is seen again. */
  public void foreground() {
    work.wake();
    onChange();
  }

  /** Returns a picture for the screen, or null. */
  public File picture(String id) {
    File file = pictures.small(id);
    return file.isFile() ? file : null;
  }

  /** Tells the page what is different now. */
  @Override
  public void onChange() {
    publishState();
    publishChat();
  }

  /** Ends the engine. */
  @Override
  public void close() {
    work.close();
  }

  private void handle(String name, JSONObject command) throws EngineException {
    switch (name) {
      case "hello":
        onChange();
        if (chosen != null) { // the page was ended while the user was in the camera
          host.toPage(Json.object("event", "picture", "picture", chosen));
        }
        break;
      case "open":
        open(Json.text(command, "chat"));
        break;
      case "delete":
        delete(Json.text(command, "chat"));
        break;
      case "send":
        send(command);
        break;
      case "stop":
        work.stop();
        break;
      case "picture":
        host.choosePicture(command.optBoolean("camera"));
        break;
      case "drop":
        chosen = null;
        break;
      case "import":
        host.chooseWeights();
        break;
      case "settings":
        change(command.optJSONObject("settings"));
        break;
      case "check":
        work.check();
        break;
      case "retry":
        work.prepare();
        break;
      case "copy":
        host.copy(command.optString("text"));
        break;
      case "log":
        host.save(LOG_NAME, report());
        break;
      case "leave":
        host.leave();
        break;
      default:
        throw new IllegalArgumentException(name + " is no command");
    }
  }

  private void open(String id) {
    current = chats.get(id) == null ? null : id;
    publishChat();
  }

  private void delete(String id) {
    Job answering = work.answering();
    if (answering != null && answering.chat.equals(id)) {
      work.stop();
    }
    synchronized (this) {
      if (id != null && id.equals(current)) {
        current = null;
      }
      chats.delete(id);
    }
    onChange();
  }

  /** Takes a question: a new one, or one in place of an earlier one. */
  private synchronized void send(JSONObject command) throws EngineException {
    String text = command.optString("text").trim();
    String picture = Json.text(command, "picture");
    if (text.isEmpty()) {
      return;
    }
    if (!Json.isUnicode(text)) { // what is shown can be kept
      throw new EngineException(
          EngineException.INVALID_TEXT, "the text holds half of a UTF-16 pair; remove it");
    }
    if (work.answering() != null) {
      throw new EngineException(EngineException.BUSY, "an answer is under way");
    }
    if (work.settings() == null) {
      throw new EngineException(EngineException.BUSY, "the app is still starting");
    }
    if (picture != null && !pictures.has(picture)) {
      throw new EngineException(EngineException.INVALID_PICTURE, "the picture is gone");
    }
    Chat chat = chats.get(Json.text(command, "chat"));
    long now = System.currentTimeMillis();
    if (chat == null) {
      chat = chats.create(now);
    }
    chat.ask(command.optInt("from", chat.turns().size()), Turn.question(text, picture), now);
    current = chat.id;
    chosen = null;
    work.answer(chat);
    publishChat();
    chats.save(chat); // last: where storage is full, there is an answer all the same
  }

  private void change(JSONObject choices) throws EngineException {
    Settings settings = work.settings();
    if (settings == null) {
      return;
    }
    if (choices == null) {
      settings.reset();
    } else {
      settings.choose(choices);
    }
    publishState();
  }

  private void fail(EngineException e) {
    log.add(e.code() + ": " + e.getMessage());
    host.toPage(Json.object("event", "error", "code", e.code(), "message", e.getMessage()));
  }

  private void publishState() {
    synchronized (publishing) {
      JSONObject state = state();
      Json.put(state, "chats", chats.list());
      host.toPage(state);
    }
  }

  private void publishChat() {
    synchronized (publishing) {
      Chat chat = chats.get(current);
      JSONObject event =
          Json.object("event", "chat", "chat", chat == null ? null : chat.toJson());
      Job answering = work.answering();
      if (chat != null && answering != null && chat.id.equals(answering.chat)) {
        Json.put(event, "partial", answering.text());
      }
      host.toPage(event);
    }
  }

  private JSONObject state() {
    JSONObject state = Json.object("event", "state", "dark", host.isDark(), "about", host.about());
    Settings settings = work.settings();
    boolean isChosen = settings != null && !settings.language().equals("system");
    Json.put(state, "language", isChosen ? settings.language() : host.language());
    work.describe(state);
    JSONArray where = new JSONArray();
    for (File file : places.outsideWeights) {
      where.put(file.getPath());
    }
    Json.put(state, "places", where);
    Json.put(state, "can", new JSONArray(ABILITIES));
    return state;
  }

  /** What a report of a mistake needs; no chats and no pictures. */
  private String report() {
    JSONObject state = state();
    state.remove("ranges");
    return state + "\n\n" + log.text();
  }
}
