package org.minicpmv.core;

import java.io.ByteArrayInputStream;
import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.Set;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/**
 * The app without its screen: handles the page's commands and publishes events to it.
 *
 * <p>android/page/BRIDGE.md lists commands and events. Methods may be called from any thread and
 * return at once.
 */
public final class Assistant implements Closeable, ChatWorker.ChangeListener, Sparing {
  private static final String LOG_NAME = "minicpmv-log.txt";
  private static final List<String> ABILITIES =
      Arrays.asList("camera", "import", "keep", "check", "threads", "notices", "bench");

  private final Host host;
  private final AppPaths paths;
  private final Log log;
  private final ChatStore chats;
  private final Pictures pictures;
  private final ChatWorker worker;
  private final Object publishing = new Object(); // lock: events are published in order
  private final Draft draft; // the chat on the page, and the next question
  private final OfferedPictures offered;
  private volatile Extension extension; // null: this variant of the app has none
  private volatile JSONObject insets; // margins that the system covers; null: none
  private final List<JSONObject> unseen = new ArrayList<>(); // errors before the page's hello
  private boolean hasPage; // it has said hello; guarded by `unseen`
  private volatile boolean speaking; // an answer is being read aloud
  private String published = ""; // identifies the latest `chat` event

  public Assistant(Host host, AppPaths paths) throws IOException {
    this.host = host;
    this.paths = paths;
    offered = new OfferedPictures(host);
    FileTools.makeFolder(paths.files);
    FileTools.makeFolder(paths.cache);
    log = new Log(new File(paths.files, "log.txt"));
    chats = new ChatStore(new File(paths.files, "chats"), log);
    pictures = new Pictures(new File(paths.files, "pictures"), host.decoder());
    draft = new Draft(new File(paths.files, "draft.json"), log);
    if (chats.isComplete()) {
      Set<String> used = chats.pictures();
      used.add(draft.picture() == null ? "" : draft.picture().optString("id"));
      pictures.keepOnly(used);
    }
    worker = new ChatWorker(host, paths, log, chats, pictures, this);
    worker.prepare();
  }

  /** Adds what only this variant of the app has; {@link #close} closes it. */
  public void extend(Extension added) {
    extension = added;
    publishState();
  }

  /** Answers another program, after what the user asked for. */
  public void serve(ServedChat chat) {
    worker.serve(chat);
  }

  /** Cancels an answer for another program. */
  public void cancel(ServedChat chat) {
    worker.cancel(chat);
  }

  /** Returns the user's settings; null while the app is starting. */
  public Settings settings() {
    return worker.settings();
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
      choose(pictures.add(source));
    } catch (EngineException e) {
      fail(e);
    }
  }

  /**
   * Adds one of several pictures that came at once: the page asks which one the question is about.
   * Does not close the source.
   */
  public void offerPicture(InputStream source) {
    try {
      offered.add(pictures.add(source));
      offered.publish();
    } catch (EngineException e) {
      fail(e);
    }
  }

  /** Adds what the user dictated to the question. */
  public void addDictated(String text) {
    host.toPage(Json.object("event", "dictated", "text", text));
  }

  /**
   * Tells the page which margins of its window the system's bars and cut-outs cover.
   *
   * @param margins `top`, `right`, `bottom`, `left`, in the page's pixels
   */
  public void setInsets(JSONObject margins) {
    if (!String.valueOf(insets).equals(margins.toString())) {
      insets = margins;
      publishState();
    }
  }

  @Override
  public void setSparing(boolean isSparing) {
    worker.setSparing(isSparing);
  }

  /** Tells the page whether an answer is being read aloud. */
  public void setSpeaking(boolean isSpeaking) {
    speaking = isSpeaking;
    publishState();
  }

  /**
   * Takes the weights that the user chose, and closes the file.
   *
   * @param isKept whether to use them where they are, if possible; else they are copied. A copy that
   *     broke off continues with the file of the same address
   */
  public void importWeights(LentFile source, boolean isKept) {
    try {
      worker.importWeights(source, isKept);
    } catch (EngineException e) {
      fail(e);
    }
  }

  /**
   * Reports that a file cannot be opened or written.
   *
   * @param what what failed, without the reason
   */
  public void reportFileError(String what, Exception e) {
    fail(FileTools.failure(EngineException.FILE_ERROR, what, e));
  }

  /** A page begins to load: errors wait until it says hello. */
  public void expectPage() {
    synchronized (unseen) {
      hasPage = false;
    }
  }

  /** Unloads an idle engine: the system is short of memory. Chats stay. */
  public void trimMemory() {
    worker.unload();
  }

  /** Reloads the engine: the app is visible again. */
  public void foreground() {
    worker.reload();
    Extension added = extension;
    if (added != null) {
      added.foreground();
    }
    onChange();
  }

  /** Returns a picture's preview, or null. */
  public File picture(String id) {
    File file = pictures.small(id);
    return file.isFile() ? file : null;
  }

  /** Publishes the current state to the page, and the chat if it has changed. */
  @Override
  public void onChange() {
    publishState();
    publishChat(false);
  }

  /** Stops all work and the engine. */
  @Override
  public void close() {
    Extension added = extension;
    if (added != null) {
      added.close();
    }
    worker.close();
  }

  private void handle(String name, JSONObject command) throws EngineException {
    switch (name) {
      case "hello":
        greet();
        break;
      case "open":
        open(Json.text(command, "chat"));
        break;
      case "delete":
        delete(Json.text(command, "chat"));
        break;
      case "rename":
        rename(Json.text(command, "chat"), command.optString("title"));
        break;
      case "search":
        String wanted = command.optString("text");
        JSONArray found = chats.search(wanted);
        host.toPage(Json.object("event", "found", "text", wanted, "chats", found));
        break;
      case "draft":
        draft.setText(Json.unicode(command.optString("text")));
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
        draft.setPicture(null);
        break;
      case "pick":
        pick(Json.text(command, "picture"));
        break;
      case "paste":
        addPicture(new ByteArrayInputStream(decoded(command.optString("data"))));
        break;
      case "import":
        host.chooseWeights(command.optBoolean("keep"));
        break;
      case "settings":
        change(command.optJSONObject("settings"));
        break;
      case "check":
        worker.check();
        break;
      case "bench":
        worker.bench();
        break;
      case "retry":
        worker.prepare();
        break;
      case "copy":
        host.copy(command.optString("text"));
        break;
      case "share":
        host.share(command.optString("text"));
        break;
      case "speak":
        host.speak(Json.text(command, "text"));
        break;
      case "dictate":
        host.dictate();
        break;
      case "log":
        host.save(LOG_NAME, report());
        break;
      case "back":
        host.setTakesBack(command.optBoolean("takes"));
        break;
      case "leave":
        host.leave();
        break;
      default:
        Extension added = extension;
        if (added == null || !added.name().equals(name)) {
          throw new IllegalArgumentException("unknown command " + name);
        }
        added.receive(command);
    }
  }

  private void open(String id) {
    draft.setChat(chats.get(id) == null ? null : id);
    publishChat(true);
  }

  /** Publishes everything for a page that has just loaded. */
  private void greet() {
    publishState();
    publishChat(true);
    JSONObject chosen = draft.picture();
    if (chosen != null) {
      host.toPage(Json.object("event", "picture", "picture", chosen));
    }
    if (!draft.text().isEmpty()) {
      host.toPage(Json.object("event", "draft", "text", draft.text()));
    }
    offered.publish();
    synchronized (unseen) {
      hasPage = true;
      for (JSONObject error : unseen) {
        host.toPage(error);
      }
      unseen.clear();
    }
  }

  private void choose(JSONObject picture) {
    draft.setPicture(picture);
    host.toPage(Json.object("event", "picture", "picture", picture));
  }

  /** Chooses one of the shared pictures; null discards them all. */
  private void pick(String id) {
    JSONObject chosen = offered.pick(id);
    if (chosen != null) {
      choose(chosen);
    }
  }

  private void rename(String id, String title) throws EngineException {
    Chat chat = chats.get(id);
    if (chat != null) {
      chat.rename(Json.unicode(title));
      onChange();
      chats.save(chat);
    }
  }

  private static byte[] decoded(String base64) throws EngineException {
    try {
      return Base64.getDecoder().decode(base64);
    } catch (IllegalArgumentException e) {
      throw new EngineException(EngineException.INVALID_PICTURE, "it is no Base64", e);
    }
  }

  private void delete(String id) {
    Job answering = worker.answering();
    if (answering != null && answering.chat.equals(id)) {
      worker.stop();
    }
    synchronized (this) {
      if (id != null && id.equals(draft.chat())) {
        draft.setChat(null);
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
    Json.unicode(text); // before anything changes
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
    draft.asked(chat.id);
    worker.answer(chat);
    host.prepareBackground();
    publishChat(false);
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
    JSONObject error =
        Json.object("event", "error", "code", e.code(), "message", e.getMessage());
    synchronized (unseen) {
      if (!hasPage) {
        unseen.add(error);
        return;
      }
    }
    host.toPage(error);
  }

  private void publishState() {
    synchronized (publishing) {
      JSONObject state = state();
      Json.put(state, "chats", chats.list());
      host.toPage(state);
      host.setDark(state.optBoolean("dark"));
    }
  }

  /**
   * Publishes the chat on the page.
   *
   * @param always false: only if it differs from what the page has; the page gets the rest of an
   *     answer as `text`
   */
  private void publishChat(boolean always) {
    synchronized (publishing) {
      Chat chat = chats.get(draft.chat());
      JSONObject event =
          Json.object("event", "chat", "chat", chat == null ? null : chat.toJson());
      Job answering = worker.answering();
      boolean isAnswering =
          chat != null && answering != null && chat.id.equals(answering.chat);
      String key = isAnswering + event.toString();
      if (!always && key.equals(published)) {
        return;
      }
      published = key;
      if (isAnswering) {
        Json.put(event, "partial", answering.text());
      }
      host.toPage(event);
    }
  }

  private JSONObject state() {
    JSONObject state = Json.object("event", "state", "about", host.about());
    Settings settings = worker.settings();
    String theme = settings == null ? "system" : settings.theme();
    Json.put(state, "dark", theme.equals("system") ? host.isDark() : theme.equals("dark"));
    boolean isChosen = settings != null && !settings.language().equals("system");
    Json.put(state, "language", isChosen ? settings.language() : host.language());
    worker.describe(state);
    JSONArray where = new JSONArray();
    for (File file : paths.externalWeights) {
      where.put(file.getPath());
    }
    Json.put(state, "places", where);
    List<String> can = new ArrayList<>(ABILITIES);
    can.addAll(host.abilities());
    Extension added = extension;
    if (added != null) {
      can.add(added.name());
      Json.put(state, added.name(), added.state());
    }
    Json.put(state, "can", new JSONArray(can));
    Json.put(state, "speaking", speaking);
    Json.put(state, "insets", insets);
    return state;
  }

  /** Returns the contents of a bug report: state and log, without chats, pictures and secrets. */
  private String report() {
    JSONObject state = state();
    state.remove("ranges");
    Extension added = extension;
    if (added != null) {
      state.remove(added.name()); // it holds the token
    }
    return state + "\n\n" + log.text();
  }
}
