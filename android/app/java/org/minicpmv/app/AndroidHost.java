package org.minicpmv.app;

import android.app.ActivityManager;
import android.content.ClipData;
import android.content.ClipboardManager;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.content.pm.PackageManager;
import android.content.res.Configuration;
import android.net.Uri;
import android.os.BatteryManager;
import android.os.Build;
import android.os.Handler;
import android.os.Looper;
import android.speech.tts.TextToSpeech;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import org.json.JSONObject;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.Host;
import org.minicpmv.core.Json;
import org.minicpmv.core.LentFile;
import org.minicpmv.core.PictureDecoder;
import org.minicpmv.core.RestartPolicy;

/** Implements {@link Host} on Android. All access to the screen is on the main thread. */
final class AndroidHost implements Host {
  private final App app;
  private final Handler main = new Handler(Looper.getMainLooper());
  private final RestartPolicy pageDeaths = new RestartPolicy();
  private final PictureDecoder decoder = new AndroidPictureDecoder();
  private MainActivity screen; // null if there is none; main thread only, like the next field
  private boolean visible;
  private final Speaker speaker; // main thread only
  private volatile List<String> abilities = Collections.emptyList();

  AndroidHost(App app) {
    this.app = app;
    speaker = new Speaker(app);
  }

  /** Called on the main thread. */
  void attach(MainActivity activity) {
    screen = activity;
    abilities = findAbilities();
  }

  /** Called on the main thread. */
  void detach(MainActivity activity) {
    if (screen == activity) {
      screen = null;
    }
  }

  /** Called on the main thread. */
  void setVisible(boolean isVisible) {
    visible = isVisible;
  }

  /** Decides whether to open a page again whose process has died. */
  RestartPolicy pageDeaths() {
    return pageDeaths;
  }

  @Override
  public void toPage(JSONObject event) {
    final String script = "receive(" + Json.forScript(event) + ")";
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            activity.evaluate(script);
          }
        });
  }

  @Override
  public void setDark(final boolean isDark) {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            WindowEdges.setDark(activity, isDark);
          }
        });
  }

  @Override
  public void setBusy(final boolean busy) {
    main.post(
        new Runnable() {
          @Override
          public void run() {
            WorkService.set(app, busy, visible);
          }
        });
  }

  @Override
  public void prepareBackground() {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            NotificationPermission.ask(activity);
          }
        });
  }

  @Override
  public void choosePicture(final boolean camera) {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            activity.choosePicture(camera);
          }
        });
  }

  @Override
  public void chooseWeights(final boolean isKept) {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            activity.chooseWeights(isKept);
          }
        });
  }

  @Override
  public LentFile openLent(String address) throws EngineException {
    return LentDocument.open(app, Uri.parse(address));
  }

  @Override
  public void giveBack(String address) {
    LentDocument.giveBack(app, Uri.parse(address));
  }

  @Override
  public void copy(final String text) {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            ClipboardManager board =
                (ClipboardManager) app.getSystemService(Context.CLIPBOARD_SERVICE);
            board.setPrimaryClip(ClipData.newPlainText(null, text));
          }
        });
  }

  @Override
  public void save(final String name, final String text) {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            activity.save(name, text);
          }
        });
  }

  @Override
  public List<String> abilities() {
    return abilities;
  }

  @Override
  public void share(final String text) {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            Intent intent = new Intent(Intent.ACTION_SEND).setType("text/plain");
            activity.startActivity(
                Intent.createChooser(intent.putExtra(Intent.EXTRA_TEXT, text), null));
          }
        });
  }

  @Override
  public void speak(final String text) {
    main.post(
        new Runnable() {
          @Override
          public void run() {
            speaker.speak(text);
          }
        });
  }

  @Override
  public void dictate() {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            activity.dictate();
          }
        });
  }

  @Override
  public void setTakesBack(final boolean takesBack) {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            activity.setTakesBack(takesBack);
          }
        });
  }

  @Override
  public double temperature() {
    Intent battery =
        app.registerReceiver(null, new IntentFilter(Intent.ACTION_BATTERY_CHANGED));
    int tenths =
        battery == null ? -1 : battery.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, -1);
    return tenths < 0 ? Double.NaN : tenths / 10.0;
  }

  @Override
  public void leave() {
    onScreen(
        new OnScreen() {
          @Override
          public void run(MainActivity activity) {
            activity.moveTaskToBack(true);
          }
        });
  }

  @Override
  public String language() {
    Locale locale = app.getResources().getConfiguration().getLocales().get(0);
    return locale.getLanguage();
  }

  @Override
  public boolean isDark() {
    int mode = app.getResources().getConfiguration().uiMode & Configuration.UI_MODE_NIGHT_MASK;
    return mode == Configuration.UI_MODE_NIGHT_YES;
  }

  @Override
  public JSONObject about() {
    String version;
    try {
      version = app.getPackageManager().getPackageInfo(app.getPackageName(), 0).versionName;
    } catch (PackageManager.NameNotFoundException e) {
      throw new IllegalStateException("the app runs, so it is installed", e);
    }
    return Json.object(
        "app", version,
        "phone", Build.MANUFACTURER + " " + Build.MODEL,
        "chip", Build.VERSION.SDK_INT >= 31 ? Build.SOC_MODEL : Build.HARDWARE,
        "android", Build.VERSION.RELEASE,
        "memory_bytes", memory().totalMem,
        "free_space_bytes", app.getFilesDir().getUsableSpace());
  }

  @Override
  public long availableMemory() {
    return memory().availMem;
  }

  @Override
  public InputStream bundleFile(String name) throws IOException {
    return app.getAssets().open("bundle/" + name);
  }

  @Override
  public InputStream configFile(String name) throws IOException {
    return app.getAssets().open("configs/" + name);
  }

  @Override
  public PictureDecoder decoder() {
    return decoder;
  }

  /** Looks for the system's parts that the app can use; the user may have removed them. */
  private List<String> findAbilities() {
    List<String> found = new ArrayList<>();
    found.add("share");
    PackageManager packages = app.getPackageManager();
    Intent speech = new Intent(TextToSpeech.Engine.INTENT_ACTION_TTS_SERVICE);
    if (!packages.queryIntentServices(speech, 0).isEmpty()) {
      found.add("speak");
    }
    if (Dictation.intent("").resolveActivity(packages) != null) {
      found.add("dictate");
    }
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.TIRAMISU) {
      found.add("back");
    }
    return found;
  }

  private ActivityManager.MemoryInfo memory() {
    ActivityManager.MemoryInfo info = new ActivityManager.MemoryInfo();
    ((ActivityManager) app.getSystemService(Context.ACTIVITY_SERVICE)).getMemoryInfo(info);
    return info;
  }

  private void onScreen(final OnScreen action) {
    main.post(
        new Runnable() {
          @Override
          public void run() {
            if (screen != null) {
              action.run(screen);
            }
          }
        });
  }

  private interface OnScreen {
    void run(MainActivity activity);
  }
}
