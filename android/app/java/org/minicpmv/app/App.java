package org.minicpmv.app;

import android.Manifest;
import android.app.Application;
import android.content.pm.PackageManager;
import java.io.File;
import java.io.IOException;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.minicpmv.api.Api;
import org.minicpmv.core.AppPaths;
import org.minicpmv.core.Assistant;
import org.minicpmv.core.Weights;
import org.minicpmv.system.PowerWatch;

/** Owns the assistant, which outlives the activity. */
public final class App extends Application {
  private static final String ENGINE = "libengine.so";
  // Apps can read this folder. A PC pushes weights here if it cannot write to the app's own folder.
  private static final File SHELL_FOLDER = new File("/data/local/tmp/minicpmv");

  private AndroidHost host;
  private Assistant assistant;

  @Override
  public void onCreate() {
    super.onCreate();
    host = new AndroidHost(this);
    try {
      assistant = new Assistant(host, paths());
      if (hasApi()) {
        File kept = new File(getFilesDir(), "api.json");
        assistant.extend(new Api(assistant, host, new AndroidPlatform(this), kept));
      }
    } catch (IOException e) {
      throw new IllegalStateException("the app's own folder cannot be used", e);
    }
    PowerWatch.start(this, assistant);
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

  /**
   * Whether this is the variant of `minicpmv apk --api`: only it asks for the permission. Where the
   * user has denied it, as some systems allow, starting the server fails and says so.
   */
  private boolean hasApi() {
    try {
      String[] asked =
          getPackageManager()
              .getPackageInfo(getPackageName(), PackageManager.GET_PERMISSIONS)
              .requestedPermissions;
      return asked != null && Arrays.asList(asked).contains(Manifest.permission.INTERNET);
    } catch (PackageManager.NameNotFoundException e) {
      throw new IllegalStateException("the app runs, so it is installed", e);
    }
  }

  private AppPaths paths() {
    String engine = new File(getApplicationInfo().nativeLibraryDir, ENGINE).getPath();
    File external = getExternalFilesDir(null); // null while a memory card is removed
    File shell = new File(SHELL_FOLDER, Weights.NAME);
    List<File> outside =
        external == null
            ? Collections.singletonList(shell)
            : Arrays.asList(new File(external, Weights.NAME), shell);
    return new AppPaths(Collections.singletonList(engine), getFilesDir(), getCacheDir(), outside);
  }
}
