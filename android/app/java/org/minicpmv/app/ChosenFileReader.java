package org.minicpmv.app;

import android.content.res.AssetFileDescriptor;
import android.net.Uri;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;

/**
 * Opens what the user chose, off the main thread: it may come from far away. Other apps bring it,
 * and their mistakes are not to end this one.
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
      app.assistant().addPicture(nothing()); // says that it is no picture
    } finally {
      PhotoProvider.forget(app);
    }
  }

  private void takeWeights() {
    try {
      AssetFileDescriptor file = app.getContentResolver().openAssetFileDescriptor(chosen, "r");
      app.assistant().importWeights(file.createInputStream(), file.getLength());
    } catch (IOException | RuntimeException e) {
      app.assistant().importWeights(nothing(), 0); // says what is wrong with it
    }
  }

  private static InputStream nothing() {
    return new ByteArrayInputStream(new byte[0]);
  }
}
