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
import android.util.AndroidRuntimeException;
import android.webkit.WebSettings;
import android.webkit.WebView;
import android.widget.TextView;
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
  private static final String TO_SAVE = "to-save.txt"; // a cache file, which outlives the process

  private WebView view; // null if the system has no WebView
  private Dialog dialog; // the one shown last; null: none

  @Override
  protected void onCreate(Bundle state) {
    super.onCreate(state);
    try {
      view = new WebView(this);
    } catch (AndroidRuntimeException e) { // WebView is missing, disabled, or being updated
      TextView text = new TextView(this);
      text.setText(R.string.no_web_view);
      setContentView(text);
      return;
    }
    WebSettings settings = view.getSettings();
    settings.setJavaScriptEnabled(true);
    settings.setAllowFileAccess(false);
    settings.setAllowContentAccess(false);
    settings.setGeolocationEnabled(false);
    view.setBackgroundColor(Color.TRANSPARENT); // until the page is drawn, the window's
    view.setWebViewClient(new PageClient(app()));
    view.addJavascriptInterface(new Bridge(app()), "app");
    setContentView(view);
    WindowEdges.fill(this, app().assistant());
    app().host().attach(this);
    view.loadUrl(PageFiles.START);
  }

  @Override
  protected void onStart() {
    super.onStart();
    app().host().setVisible(true);
    app().assistant().foreground();
  }

  @Override
  protected void onStop() {
    app().host().setVisible(false);
    super.onStop();
  }

  @Override
  public void onConfigurationChanged(Configuration configuration) {
    super.onConfigurationChanged(configuration);
    app().assistant().onChange(); // the language or the theme may have changed
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

  /** The page handles Back: it closes an open panel, or leaves the app. */
  @Override
  public void onBackPressed() {
    if (view == null) {
      finish();
    } else {
      evaluate("receive({event: 'back'})");
    }
  }

  /** Shows a dialog; it goes with the screen. */
  void show(Dialog newDialog) {
    dialog = newDialog;
    dialog.show();
  }

  void evaluate(String script) {
    view.evaluateJavascript(script, null);
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

  void chooseWeights() {
    start(document(Intent.ACTION_OPEN_DOCUMENT, "*/*"), WEIGHTS);
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
    Uri given = data == null ? null : data.getData();
    Uri chosen = given == null || PhotoProvider.isOurs(given) ? null : given;
    if (request == PHOTO) {
      new Thread(new ChosenFileReader(app(), PhotoProvider.photo(this), false)).start();
    } else if (chosen != null && request == PICTURE) {
      new Thread(new ChosenFileReader(app(), chosen, false)).start();
    } else if (chosen != null && request == WEIGHTS) {
      new Thread(new ChosenFileReader(app(), chosen, true)).start();
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
