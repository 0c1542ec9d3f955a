package org.minicpmv.app;

import android.app.Application;
import java.io.File;
import java.io.IOException;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.minicpmv.core.Assistant;
import org.minicpmv.core.Places;
import org.minicpmv.core.Weights;

/** Has the assistant, which outlives the screen. */
public final class App extends Application {
  private static final String ENGINE = "libengine.so";
  // Where apps may read what a PC put, on phones on which a PC cannot write to the app's folder.
  private static final File SHELL_FOLDER = new File("/data/local/tmp/minicpmv");

  private AndroidHost host;
  private Assistant assistant;

  @Override
  public void onCreate() {
    super.onCreate();
    host = new AndroidHost(this);
    try {
      assistant = new Assistant(host, places());
    } catch (IOException e) {
      throw new IllegalStateException("the app's own folder cannot be used", e);
    }
  }

  @Override
  public void onTrimMemory(int level) {
    super.onTrimMemory(level);
    if (level >= TRIM_MEMORY_BACKGROUND || level == TRIM_MEMORY_RUNNING_CRITICAL) {
      assistant.trimMemory();
    }
  }

  AndroidHost host() {
    return host;
  }

  Assistant assistant() {
    return assistant;
  }

  private Places places() {
    String engine = new File(getApplicationInfo().nativeLibraryDir, ENGINE).getPath();
    File beside = getExternalFilesDir(null); // null while a memory card is away
    File shell = new File(SHELL_FOLDER, Weights.NAME);
    List<File> outside =
        beside == null
            ? Collections.singletonList(shell)
            : Arrays.asList(new File(beside, Weights.NAME), shell);
    return new Places(Collections.singletonList(engine), getFilesDir(), getCacheDir(), outside);
  }
}
