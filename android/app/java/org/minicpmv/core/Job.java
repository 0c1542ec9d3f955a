package org.minicpmv.core;

import org.json.JSONArray;
import org.json.JSONObject;

/** A unit of work: the page shows its progress and can stop it. */
final class Job {
  static final String ANSWER = "answer";
  static final String LOAD = "load";
  static final String IMPORT = "import";
  static final String CHECK = "check";
  static final String BENCH = "bench";
  static final String SERVE = "serve"; // answers another program
  static final String VERIFY = "verify";
  static final String UNLOAD = "rest"; // stops the engine to free its memory

  final String kind;
  final String chat; // an answer's chat; else null
  final CancelToken cancel;
  private final StringBuilder text = new StringBuilder();
  private String stage = "";
  private long done;
  private long total;
  private JSONArray grid; // columns and rows of the slices of a picture; null: none
  private final Rate rate = new Rate();

  Job(String kind, String chat) {
    this(kind, chat, new CancelToken());
  }

  Job(String kind, String chat, CancelToken cancel) {
    this.kind = kind;
    this.chat = chat;
    this.cancel = cancel;
  }

  synchronized void advance(String newStage, long newDone, long newTotal, JSONArray newGrid) {
    rate.add(newStage, System.nanoTime(), newDone);
    stage = newStage;
    done = newDone;
    total = newTotal;
    grid = newGrid;
  }

  /** Appends a piece to an answer; returns its offset. */
  synchronized int add(String piece) {
    int at = text.length();
    text.append(piece);
    return at;
  }

  synchronized String text() {
    return text.toString();
  }

  synchronized JSONObject toJson() {
    JSONObject job =
        Json.object(
            "kind", kind, "chat", chat, "stage", stage, "done", done, "total", total, "grid", grid);
    double speed = rate.perSecond();
    if (stage.equals(IMPORT) && speed > 0) {
      Json.put(job, "bytes_s", Math.round(speed));
      Json.put(job, "left_s", Math.round((total - done) / speed));
    }
    return job;
  }
}
