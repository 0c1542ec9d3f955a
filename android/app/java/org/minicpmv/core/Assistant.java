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
 * The app without its screen: handles the page's commands and publishes events to it.
 *
 * <p>android/page/BRIDGE.md lists commands and events. Methods may be called from any thread and
 * return at once.
 */
public final class Assistant implements Closeable, ChatWorker.ChangeListener {
  private static final String LOG_NAME = "minicpmv-log.txt";
  private static final List<String> ABILITIES =
      Arrays.asList("camera", "import", "check", "threads", "notices");

  private final Host host;
  private final AppPaths paths;
  private final Log log;
  private final ChatStore chats;
  private final Pictures pictures;
  private final ChatWorker worker;
  private final Object publishing = new Object(); // lock: events are published in order
  private volatile String current; // id of the chat on the page; null: a new one
  private volatile JSONObject chosen; // a picture for the next question; null: none

  public Assistant(Host host, AppPaths paths) throws IOException {
    this.host = host;
    this.paths = paths;
    FileTools.makeFolder(paths.files);
    FileTools.makeFolder(paths.cache);
    log = new Log(new File(paths.files, "log.txt"));
    chats = new ChatStore(new File(paths.files, "chats"), log);
    pictures = new Pictures(new File(paths.files, "pictures"), host.decoder());
    if (chats.isComplete()) {
      pictures.keepOnly(chats.pictures());
    }
    worker = new ChatWorker(host, paths, log, chats, pictures, this);
    worker.prepare();
  }

  /** Handles a command of the page; anything else is logged and ignored. */
  public void receive(String text) {
    try {
      JSONObject command = Json.parse(text);
      handle(command.optString("do"), command);
    } catch (EngineException e) {
      fail(e);
    } catch (JSONException | IllegalArgumentException e) {
      log.add("the page sent an invalid command: " + e.getMessage());
    }
  }

  /** Adds the picture that the user chose; does not close the source. */
  public void addPicture(InputStream source) {
    try {
      chosen = pictures.add(source);
      host.toPage(Json.object("event", "picture", "picture", chosen));
    } catch (EngineException e) {
      fail(e);
    }
  }

  /** Imports the weights that the user chose, and closes the source; length -1: unknown. */
  public void importWeights(InputStream source, long length) {
    try {
      worker.importWeights(source, length);
    } catch (EngineException e) {
      fail(e);
    }
  }

  /** Unloads an idle engine: the system is short of memory. Chats stay. */
  public void trimMemory() {
    worker.unload();
  }

  /** Reloads the engine: the app is visible again. */
  public void foreground() {
    worker.reload();
    onChange();
  }

  /** Returns a picture's preview, or null. */
  public File picture(String id) {
    File file = pictures.small(id);
    return file.isFile() ? file : null;
  }

  /** Publishes the current state to the page. */
  @Override
  public void onChange() {
    publishState();
    publishChat();
  }

  /** Stops all work and the engine. */
  @Override
  public void close() {
    worker.close();
  }

  private void handle(String name, JSONObject command) throws EngineException {
    switch (name) {
      case "hello":
        onChange();
        if (chosen != null) { // the page was destroyed while the camera was open
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
        worker.stop();
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
        worker.check();
        break;
      case "retry":
        worker.prepare();
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
        throw new IllegalArgumentException("unknown command " + name);
    }
  }

  private void open(String id) {
    current = chats.get(id) == null ? null : id;
    publishChat();
  }

  private void delete(String id) {
    Job answering = worker.answering();
    if (answering != null && answering.chat.equals(id)) {
      worker.stop();
    }
    synchronized (this) {
      if (id != null && id.equals(current)) {
        current = null;
      }
      chats.delete(id);
    }
    onChange();
  }

  /** Adds a question, or replaces an earlier one, and starts the answer. */
  private synchronized void send(JSONObject command) throws EngineException {
    String text = command.optString("text").trim();
    String picture = Json.text(command, "picture");
    if (text.isEmpty()) {
      return;
    }
    if (!Json.isUnicode(text)) { // it could not be saved
      throw new EngineException(
          EngineException.INVALID_TEXT, "the text contains half of a UTF-16 pair; remove it");
    }
    if (worker.answering() != null) {
      throw new EngineException(EngineException.BUSY, "another answer is running");
    }
    if (worker.settings() == null) {
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
    worker.answer(chat);
    publishChat();
    chats.save(chat); // last: if storage is full, the answer still starts
  }

  private void change(JSONObject choices) throws EngineException {
    Settings settings = worker.settings();
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
      Job answering = worker.answering();
      if (chat != null && answering != null && chat.id.equals(answering.chat)) {
        Json.put(event, "partial", answering.text());
      }
      host.toPage(event);
    }
  }

  private JSONObject state() {
    JSONObject state = Json.object("event", "state", "dark", host.isDark(), "about", host.about());
    Settings settings = worker.settings();
    boolean isChosen = settings != null && !settings.language().equals("system");
    Json.put(state, "language", isChosen ? settings.language() : host.language());
    worker.describe(state);
    JSONArray where = new JSONArray();
    for (File file : paths.externalWeights) {
      where.put(file.getPath());
    }
    Json.put(state, "places", where);
    Json.put(state, "can", new JSONArray(ABILITIES));
    return state;
  }

  /** Returns the contents of a bug report: state and log, without chats and pictures. */
  private String report() {
    JSONObject state = state();
    state.remove("ranges");
    return state + "\n\n" + log.text();
  }
}
