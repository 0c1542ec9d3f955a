package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.UUID;
import org.json.JSONArray;
import org.json.JSONException;

/** Saved conversations, one file each. */
public final class ChatStore {
  private static final String SUFFIX = ".json";

  private final File folder;
  private final Log log;
  private final Map<String, Chat> chats = new TreeMap<>();
  private boolean isComplete = true;

  /** Reads the saved chats; files that cannot be read are left untouched. */
  public ChatStore(File folder, Log log) throws IOException {
    this.folder = folder;
    this.log = log;
    FileTools.makeFolder(folder);
    File[] files = folder.listFiles();
    if (files == null) {
      log.add("chats cannot be listed");
      isComplete = false;
      return;
    }
    for (File file : files) {
      if (FileTools.isPartial(file)) {
        file.delete(); // the app was killed during a write; the chat's own file is intact
      } else {
        read(file);
      }
    }
  }

  /** Whether every file could be read. One that could not may refer to any picture. */
  public synchronized boolean isComplete() {
    return isComplete;
  }

  /** Creates a chat in memory; {@link #save} writes it. */
  public synchronized Chat create(long now) {
    Chat chat = new Chat(UUID.randomUUID().toString(), now);
    chats.put(chat.id, chat);
    return chat;
  }

  /** Returns null if there is none. */
  public synchronized Chat get(String id) {
    return id == null ? null : chats.get(id);
  }

  public synchronized void save(Chat chat) throws EngineException {
    if (!chats.containsKey(chat.id)) {
      return; // deleted in the meantime
    }
    try {
      FileTools.write(new File(folder, chat.id + SUFFIX), chat.toJson().toString());
    } catch (IOException e) {
      throw FileTools.failure(EngineException.FILE_ERROR, "the chat could not be saved", e);
    }
  }

  public synchronized void delete(String id) {
    if (chats.remove(id) != null && !new File(folder, id + SUFFIX).delete()) {
      log.add("chat " + id + " had no file");
    }
  }

  /** Returns the entries for the list of chats, latest first. */
  public synchronized JSONArray list() {
    List<Chat> sorted = new ArrayList<>(chats.values());
    Collections.sort(
        sorted,
        new Comparator<Chat>() {
          @Override
          public int compare(Chat one, Chat other) {
            return Long.compare(other.changed(), one.changed());
          }
        });
    JSONArray list = new JSONArray();
    for (Chat chat : sorted) {
      List<String> pictures = chat.pictures();
      list.put(
          Json.object(
              "id", chat.id, "title", chat.title(), "changed", chat.changed(),
              "picture", pictures.isEmpty() ? null : pictures.get(0)));
    }
    return list;
  }

  /** Returns the ids of the chats that contain a text, in any case. */
  public synchronized JSONArray search(String text) {
    JSONArray found = new JSONArray();
    for (Chat chat : chats.values()) {
      if (chat.contains(text.toLowerCase(Locale.ROOT))) {
        found.put(chat.id);
      }
    }
    return found;
  }

  /** Returns the ids of the pictures in all readable chats. */
  public synchronized Set<String> pictures() {
    Set<String> pictures = new HashSet<>();
    for (Chat chat : chats.values()) {
      pictures.addAll(chat.pictures());
    }
    return pictures;
  }

  private void read(File file) {
    String name = file.getName();
    try {
      if (!name.endsWith(SUFFIX)) {
        throw new IOException("not a chat's file name");
      }
      String id = name.substring(0, name.length() - SUFFIX.length());
      chats.put(id, Chat.fromJson(id, Json.parse(FileTools.read(file))));
    } catch (IOException | JSONException e) {
      log.add(name + " cannot be read and is left untouched: " + e.getMessage());
      isComplete = false;
    }
  }
}
