package org.minicpmv.core;

import java.util.ArrayList;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONObject;

/** Pictures that came at once, of which the page asks the user to choose one. */
final class OfferedPictures {
  private final Host host;
  private final List<JSONObject> pictures = new ArrayList<>();

  OfferedPictures(Host host) {
    this.host = host;
  }

  synchronized void add(JSONObject picture) {
    pictures.add(picture);
  }

  /** Discards all but one, which it returns; null if no picture has this id. */
  synchronized JSONObject pick(String id) {
    JSONObject chosen = null;
    for (JSONObject picture : pictures) {
      chosen = picture.optString("id").equals(id) ? picture : chosen;
    }
    pictures.clear(); // the others' files go at the next start
    return chosen;
  }

  synchronized void publish() {
    if (!pictures.isEmpty()) {
      host.toPage(Json.object("event", "shared", "pictures", new JSONArray(pictures)));
    }
  }
}
