package org.minicpmv.app;

import android.content.Intent;
import android.net.Uri;
import java.io.IOException;

/** Opens the weights that the user chose, as {@link ChosenPicture} does a picture. */
final class ChosenWeights implements Runnable {
  private final App app;
  private final Uri chosen;
  private final boolean isKept; // to be used where they are

  ChosenWeights(App app, Uri chosen, boolean isKept) {
    this.app = app;
    this.chosen = chosen;
    this.isKept = isKept;
  }

  @Override
  public void run() {
    try {
      boolean mayStay = isKept && mayOpenAgain();
      app.assistant().importWeights(LentDocument.of(app, chosen), mayStay);
    } catch (IOException | RuntimeException e) {
      app.assistant().reportFileError("the weights cannot be opened", e);
    }
  }

  /** Asks that the choice outlives this process; not every provider grants it. */
  private boolean mayOpenAgain() {
    try {
      int flags = Intent.FLAG_GRANT_READ_URI_PERMISSION;
      app.getContentResolver().takePersistableUriPermission(chosen, flags);
      return true;
    } catch (SecurityException e) {
      return false; // so the weights are copied
    }
  }
}
