package org.minicpmv.app;

import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;

/**
 * Opens the picture that the user chose, off the main thread, as it may come over a network. Other
 * apps' providers serve it; their exceptions must not crash this app.
 */
final class ChosenPicture implements Runnable {
  static final String EMPTY = "the app that keeps the file sent nothing";

  private final App app;
  private final Uri chosen;

  ChosenPicture(App app, Uri chosen) {
    this.app = app;
    this.chosen = chosen;
  }

  @Override
  public void run() {
    try {
      read(app, chosen, false);
    } finally {
      PhotoProvider.forget(app);
    }
  }

  /** Gives a picture to the assistant; with `isOffer`, as one of several that came at once. */
  static void read(App app, Uri picture, boolean isOffer) {
    try (InputStream source = app.getContentResolver().openInputStream(picture)) {
      if (source == null) {
        throw new FileNotFoundException(EMPTY);
      }
      if (isOffer) {
        app.assistant().offerPicture(source);
      } else {
        app.assistant().addPicture(source);
      }
    } catch (IOException | RuntimeException e) {
      app.assistant().reportFileError("the picture cannot be opened", e);
    }
  }
}
