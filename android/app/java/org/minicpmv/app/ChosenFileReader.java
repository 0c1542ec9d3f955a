package org.minicpmv.app;

import android.content.res.AssetFileDescriptor;
import android.net.Uri;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;

/**
 * Opens the file that the user chose, off the main thread, as it may come over a network. Other
 * apps' providers serve it; their exceptions must not crash this app.
 */
final class ChosenFileReader implements Runnable {
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
    try (InputStream source = app.getContentResolver().openInputStream(chosen)) {
      app.assistant().addPicture(source);
    } catch (IOException | RuntimeException e) {
      app.assistant().addPicture(nothing()); // reports an invalid picture
    } finally {
      PhotoProvider.forget(app);
    }
  }

  private void takeWeights() {
    try {
      AssetFileDescriptor file = app.getContentResolver().openAssetFileDescriptor(chosen, "r");
      app.assistant().importWeights(file.createInputStream(), file.getLength());
    } catch (IOException | RuntimeException e) {
      app.assistant().importWeights(nothing(), 0); // reports the wrong size
    }
  }

  private static InputStream nothing() {
    return new ByteArrayInputStream(new byte[0]);
  }
}
