package org.minicpmv.app;

import android.app.Activity;
import android.app.Dialog;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.content.res.Configuration;
import android.graphics.Color;
import android.net.Uri;
import android.os.Bundle;
import android.provider.MediaStore;
import android.view.ViewGroup;
import android.webkit.ValueCallback;
import android.webkit.WebSettings;
import android.webkit.WebView;
import android.widget.Toast;
import java.io.File;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import org.minicpmv.core.PageFiles;

/** The screen: a web view and the system's pickers. */
public final class MainActivity extends Activity {
  private static final int PICTURE = 1;
  private static final int PHOTO = 2;
  private static final int WEIGHTS = 3;
  private static final int SAVE = 4;
  private static final int DICTATION = 5;
  private static final int KEPT_WEIGHTS = 6; // to be used where they are
  static final String BACK =
      "typeof receive === 'function' && (receive({event: 'back'}), true)";
  private static final String TO_SAVE = "to-save.txt"; // a cache file, which outlives the process

  private WebView view; // null while the system cannot show the page
  private boolean isShown; // between `onStart` and `onStop`
  private boolean awaitsBack; // the page has not answered to Back yet
  private BackHandler back; // while the page has something to close; else null
  private Dialog dialog; // the one shown last; null: none

  @Override
  protected void onCreate(Bundle state) {
    super.onCreate(state);
    app().host().attach(this);
    openPage();
    if (state == null) {
      SharedPictures.take(app(), getIntent());
    }
  }

  /** Shows the page, or a notice where the phone cannot. */
  private void openPage() {
    awaitsBack = false;
    WebView page;
    try {
      page = new WebView(this);
    } catch (RuntimeException e) { // WebView is missing, disabled, or being updated
      new Notice(this, getString(R.string.no_web_view)).withUpdate().show();
      return;
    }
    WebSettings settings = page.getSettings();
    int version = PageFiles.browser(settings.getUserAgentString());
    if (version >= 0 && version < PageFiles.OLDEST_BROWSER) {
      page.destroy();
      String text = getString(R.string.old_web_view, version, PageFiles.OLDEST_BROWSER);
      new Notice(this, text).withUpdate().show();
      return;
    }
    settings.setJavaScriptEnabled(true);
    settings.setAllowFileAccess(false);
    settings.setAllowContentAccess(false);
    settings.setGeolocationEnabled(false);
    settings.setBlockNetworkLoads(true);
    page.setBackgroundColor(Color.TRANSPARENT); // until the page is drawn, the window's
    page.setWebViewClient(new PageClient(app()));
    page.addJavascriptInterface(new Bridge(app()), "app");
    setContentView(page);
    WindowEdges.fill(this, app().assistant());
    view = page;
    fitText();
    view.loadUrl(PageFiles.START);
  }

  /** Another app shares a picture while this one runs. */
  @Override
  protected void onNewIntent(Intent intent) {
    super.onNewIntent(intent);
    SharedPictures.take(app(), intent);
  }

  /** The page's process is gone: shows a new page, or a notice if that keeps happening. */
  void onPageGone(WebView gone) {
    if (gone != view) {
      return; // an older one
    }
    ((ViewGroup) view.getParent()).removeView(view);
    view.destroy();
    view = null;
    if (!isShown) {
      return; // `onRestart` opens a new one
    }
    if (app().host().pageDeaths().died(System.currentTimeMillis())) {
      openPage();
      return;
    }
    new Notice(this, getString(R.string.page_gone))
        .with(
            R.string.try_again,
            new Runnable() {
              @Override
              public void run() {
                app().host().pageDeaths().reset();
                openPage();
              }
            })
        .show();
  }

  /** Comes back, perhaps from an update of the WebView. */
  @Override
  protected void onRestart() {
    super.onRestart();
    if (view == null) {
      openPage();
    }
  }

  @Override
  protected void onStart() {
    super.onStart();
    isShown = true;
    app().host().setVisible(true);
    app().assistant().foreground();
  }

  @Override
  protected void onStop() {
    isShown = false;
    app().host().setVisible(false);
    super.onStop();
  }

  @Override
  public void onConfigurationChanged(Configuration configuration) {
    super.onConfigurationChanged(configuration);
    fitText();
    app().assistant().onChange(); // the language or the theme may have changed
  }

  /** Gives the page the system's size of text, which a web view reads only when it is made. */
  private void fitText() {
    if (view != null) {
      float scale = getResources().getConfiguration().fontScale;
      view.getSettings().setTextZoom(Math.round(100 * scale));
    }
  }

  @Override
  protected void onDestroy() {
    app().host().detach(this);
    if (dialog != null) {
      dialog.dismiss(); // a dialog may not outlive its activity
    }
    if (view != null) {
      view.destroy();
    }
    super.onDestroy();
  }

  /** Called before Android 13, which has the callback. */
  @Override
  public void onBackPressed() {
    goBack();
  }

  /** The page handles Back: it closes an open panel, or leaves the app. If it does not, we leave. */
  void goBack() {
    if (view == null) {
      finish();
    } else if (awaitsBack) { // the page hangs
      moveTaskToBack(true);
    } else {
      awaitsBack = true;
      view.evaluateJavascript(
          BACK,
          new ValueCallback<String>() {
            @Override
            public void onReceiveValue(String handled) {
              awaitsBack = false;
              if (!"true".equals(handled)) { // the page has not loaded, or failed
                moveTaskToBack(true);
              }
            }
          });
    }
  }

  void setTakesBack(boolean takesBack) {
    back = BackHandler.set(this, back, takesBack);
  }

  /** Shows a dialog; it goes with the screen. */
  void show(Dialog newDialog) {
    dialog = newDialog;
    dialog.show();
  }

  void evaluate(String script) {
    if (view != null) {
      view.evaluateJavascript(script, null);
    }
  }

  void choosePicture(boolean camera) {
    if (camera) {
      Uri photo = PhotoProvider.newPhoto(this);
      Intent intent = new Intent(MediaStore.ACTION_IMAGE_CAPTURE);
      intent.putExtra(MediaStore.EXTRA_OUTPUT, photo);
      intent.addFlags(
          Intent.FLAG_GRANT_WRITE_URI_PERMISSION | Intent.FLAG_GRANT_READ_URI_PERMISSION);
      start(intent, PHOTO);
    } else {
      start(document(Intent.ACTION_OPEN_DOCUMENT, "image/*"), PICTURE);
    }
  }

  void dictate() {
    start(Dictation.intent(app().host().language()), DICTATION);
  }

  void chooseWeights(boolean isKept) {
    start(document(Intent.ACTION_OPEN_DOCUMENT, "*/*"), isKept ? KEPT_WEIGHTS : WEIGHTS);
  }

  void save(String name, String text) {
    try {
      Files.write(toSave().toPath(), text.getBytes(StandardCharsets.UTF_8));
    } catch (IOException e) {
      reportUnsaved(e);
      return;
    }
    Intent intent = document(Intent.ACTION_CREATE_DOCUMENT, "text/plain");
    start(intent.putExtra(Intent.EXTRA_TITLE, name), SAVE);
  }

  @Override
  protected void onActivityResult(int request, int result, Intent data) {
    if (result != RESULT_OK) {
      if (request == PHOTO) {
        PhotoProvider.forget(this); // the camera may have written part of a file
      }
      return;
    }
    String dictated = request == DICTATION ? Dictation.text(data) : "";
    if (!dictated.isEmpty()) {
      app().assistant().addDictated(dictated);
    }
    Uri given = data == null ? null : data.getData();
    Uri chosen = given == null || PhotoProvider.isOurs(given) ? null : given;
    if (request == PHOTO) {
      new Thread(new ChosenPicture(app(), PhotoProvider.photo(this))).start();
    } else if (chosen != null && request == PICTURE) {
      new Thread(new ChosenPicture(app(), chosen)).start();
    } else if (chosen != null && (request == WEIGHTS || request == KEPT_WEIGHTS)) {
      new Thread(new ChosenWeights(app(), chosen, request == KEPT_WEIGHTS)).start();
    } else if (chosen != null && request == SAVE) {
      write(chosen);
    }
  }

  private void write(Uri target) {
    try (OutputStream stream = getContentResolver().openOutputStream(target)) {
      Files.copy(toSave().toPath(), stream);
    } catch (IOException | RuntimeException e) { // another app's provider may fail in any way
      reportUnsaved(e);
    } finally {
      toSave().delete();
    }
  }

  private void reportUnsaved(Exception e) {
    app().assistant().reportFileError("the file cannot be saved", e);
  }

  private File toSave() {
    return new File(getCacheDir(), TO_SAVE);
  }

  private void start(Intent intent, int request) {
    try {
      startActivityForResult(intent, request);
    } catch (ActivityNotFoundException e) {
      Toast.makeText(this, R.string.no_picker, Toast.LENGTH_LONG).show();
    }
  }

  private static Intent document(String action, String type) {
    return new Intent(action).addCategory(Intent.CATEGORY_OPENABLE).setType(type);
  }

  private App app() {
    return (App) getApplication();
  }
}
