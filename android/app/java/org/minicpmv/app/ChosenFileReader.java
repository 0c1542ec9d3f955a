package org.minicpmv.app;

import android.content.res.AssetFileDescriptor;
import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;

/**
 * Opens the file that the user chose, off the main thread, as it may come over a network. Other
 * apps' providers serve it; their exceptions must not crash this app.
 */
final class ChosenFileReader implements Runnable {
  private static final String EMPTY = "the app that keeps the file sent nothing";

  private final App app;
  private final Uri chosen;
  private final boolean isWeights;

  ChosenFileReader(App app, Uri chosen, boolean isWeights) {
    this.app = app;
    this.chosen = chosen;
    this.isWeights = isWeights;
  }

  @Override
  public void run() {
    if (isWeights) {
      takeWeights();
    } else {
      takePicture();
    }
  }

  private void takePicture() {
    try {
      readPicture(app, chosen, false);
    } finally {
      PhotoProvider.forget(app);
    }
  }

  /** Gives a picture to the assistant; with `isOffer`, as one of several that came at once. */
  static void readPicture(App app, Uri picture, boolean isOffer) {
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

  private void takeWeights() {
    try {
      AssetFileDescriptor file = app.getContentResolver().openAssetFileDescriptor(chosen, "r");
      if (file == null) {
        throw new FileNotFoundException(EMPTY);
      }
      app.assistant().importWeights(file.createInputStream(), file.getLength(), chosen.toString());
    } catch (IOException | RuntimeException e) {
      app.assistant().reportFileError("the weights cannot be opened", e);
    }
  }
}
