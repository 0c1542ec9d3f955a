package org.minicpmv.app;

import android.content.ClipData;
import android.content.Intent;
import android.net.Uri;
import android.os.Bundle;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;

/**
 * Pictures that another app shares with this one, or opens in it. Any app can send such intents, so
 * nothing in them is trusted.
 */
final class SharedPictures implements Runnable {
  private static final int MOST = 20; // pictures at once
  private static final int NAME = 80; // characters of a name in a message

  private final App app;
  private final List<Uri> pictures;

  private SharedPictures(App app, List<Uri> pictures) {
    this.app = app;
    this.pictures = pictures;
  }

  /** Takes the pictures of an intent, if it has any, off the main thread. */
  static void take(App app, Intent intent) {
    int seen = Intent.FLAG_ACTIVITY_LAUNCHED_FROM_HISTORY; // the list of recent apps repeats it
    if (intent == null || (intent.getFlags() & seen) != 0) {
      return;
    }
    String action = intent.getAction();
    boolean isShared =
        Intent.ACTION_SEND.equals(action) || Intent.ACTION_SEND_MULTIPLE.equals(action);
    if (isShared || Intent.ACTION_VIEW.equals(action)) {
      new Thread(new SharedPictures(app, find(intent, isShared))).start();
    }
  }

  @Override
  public void run() {
    if (pictures.isEmpty()) {
      refuse("the other app sent no picture", "there is no file");
    }
    List<Uri> allowed = new ArrayList<>();
    for (Uri picture : pictures) {
      String last = picture.getLastPathSegment();
      String name = last == null ? picture.toString() : last;
      name = "the picture " + name.substring(0, Math.min(name.length(), NAME)) + " is not opened";
      if (!"content".equals(picture.getScheme())) {
        refuse(name, "its app must send it as content:");
      } else if (PhotoProvider.isOurs(picture)) {
        refuse(name, "it is a file of this app");
      } else if (allowed.size() == MOST) {
        refuse(name, "the app takes " + MOST + " pictures at once");
        break; // one message for all the others
      } else {
        allowed.add(picture);
      }
    }
    for (Uri picture : allowed) {
      ChosenPicture.read(app, picture, pictures.size() > 1);
    }
  }

  private void refuse(String what, String why) {
    app.assistant().reportFileError(what, new IOException(why));
  }

  /** Returns what the intent refers to; nothing if it is damaged. */
  private static List<Uri> find(Intent intent, boolean isShared) {
    List<Uri> found = new ArrayList<>();
    try {
      if (!isShared) {
        add(found, intent.getData());
        return found;
      }
      Bundle extras = intent.getExtras();
      Object stream = extras == null ? null : extras.get(Intent.EXTRA_STREAM);
      if (stream instanceof List) {
        for (Object picture : (List<?>) stream) {
          add(found, picture);
        }
      }
      add(found, stream);
      ClipData clip = intent.getClipData(); // in place of, or beside, the extra
      for (int i = 0; found.isEmpty() && clip != null && i < clip.getItemCount(); i++) {
        add(found, clip.getItemAt(i).getUri());
      }
    } catch (RuntimeException e) { // extras of classes that this app does not have
      found.clear();
    }
    return found;
  }

  private static void add(List<Uri> found, Object picture) {
    if (picture instanceof Uri) {
      found.add((Uri) picture);
    }
  }
}
