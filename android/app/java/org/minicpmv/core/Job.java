package org.minicpmv.core;

import org.json.JSONObject;

/** Work that is under way: the page shows how far it is, and can end it. */
final class Job {
  static final String ANSWER = "answer";
  static final String LOAD = "load";
  static final String IMPORT = "import";
  static final String CHECK = "check";
  static final String VERIFY = "verify";
  static final String REST = "rest"; // the engine ends, to free its memory

  final String kind;
  final String chat; // of an answer; else null
  final Cancel cancel = new Cancel();
  private final StringBuilder text = new StringBuilder();
  private String stage = "";
  private long done;
  private long total;

  Job(String kind, String chat) {
    this.kind = kind;
    this.chat = chat;
  }

  synchronized void advance(String newStage, long newDone, long newTotal) {
    stage = newStage;
    done = newDone;
    total = newTotal;
  }

  /** Adds a piece to an answer; returns where it begins. */
  synchronized int add(String piece) {
    int at = text.length();
    text.append(piece);
    return at;
  }

  synchronized String text() {
    return text.toString();
  }

  synchronized JSONObject toJson() {
    return Json.object(
        "kind", kind, "chat", chat, "stage", stage, "done", done, "total", total);
  }
}
