package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import org.json.JSONException;
import org.json.JSONObject;

/** What the user was about to ask, and where. It outlives the app's process. */
final class Draft {
  private final File file;
  private final Log log;
  private String chat; // id of the open chat; null: a new one
  private String text = "";
  private JSONObject picture; // chosen for the next question; null: none

  /** Reads the saved draft. */
  Draft(File file, Log log) {
    this.file = file;
    this.log = log;
    try {
      JSONObject kept = file.exists() ? Json.parse(FileTools.read(file)) : new JSONObject();
      String written = Json.text(kept, "text");
      chat = Json.text(kept, "chat");
      text = written == null || !Json.isUnicode(written) ? "" : written;
      picture = kept.optJSONObject("picture");
    } catch (IOException | JSONException e) {
      log.add("the draft cannot be read: " + e.getMessage());
    }
  }

  synchronized String chat() {
    return chat;
  }

  synchronized String text() {
    return text;
  }

  synchronized JSONObject picture() {
    return picture;
  }

  synchronized void setChat(String id) {
    chat = id;
    save();
  }

  synchronized void setText(String newText) {
    text = newText;
    save();
  }

  synchronized void setPicture(JSONObject chosen) {
    picture = chosen;
    save();
  }

  /** The question was asked, in this chat. */
  synchronized void asked(String id) {
    chat = id;
    text = "";
    picture = null;
    save();
  }

  /** Saves it if possible: a full disk must not keep the user from asking. */
  private void save() {
    try {
      FileTools.write(
          file, Json.object("chat", chat, "text", text, "picture", picture).toString());
    } catch (IOException e) {
      log.add("the draft could not be saved: " + e.getMessage());
    }
  }
}
