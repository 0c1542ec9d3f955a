package org.minicpmv.app;

import android.content.ContentProvider;
import android.content.ContentValues;
import android.database.Cursor;
import android.net.Uri;
import android.os.ParcelFileDescriptor;
import java.io.File;
import java.io.FileNotFoundException;
import org.robolectric.Robolectric;

/** Another app, from which the user chooses a file. */
public final class OtherApp extends ContentProvider {
  private static final String AUTHORITY = "org.example.files";

  private File file; // null: it sends nothing
  private RuntimeException failure; // null: none

  /** Installs an app that serves one file. */
  static OtherApp with(File file) {
    OtherApp app = Robolectric.setupContentProvider(OtherApp.class, AUTHORITY);
    app.file = file;
    return app;
  }

  /** Installs an app that fails. */
  static OtherApp failing(RuntimeException failure) {
    OtherApp app = with(null);
    app.failure = failure;
    return app;
  }

  Uri uri() {
    return Uri.parse("content://" + AUTHORITY + "/file");
  }

  @Override
  public boolean onCreate() {
    return true;
  }

  @Override
  public ParcelFileDescriptor openFile(Uri uri, String mode) throws FileNotFoundException {
    if (failure != null) {
      throw failure;
    }
    return file == null
        ? null
        : ParcelFileDescriptor.open(file, ParcelFileDescriptor.parseMode(mode));
  }

  @Override
  public Cursor query(
      Uri uri, String[] projection, String selection, String[] arguments, String order) {
    return null;
  }

  @Override
  public String getType(Uri uri) {
    return null;
  }

  @Override
  public Uri insert(Uri uri, ContentValues values) {
    return null;
  }

  @Override
  public int delete(Uri uri, String selection, String[] arguments) {
    return 0;
  }

  @Override
  public int update(Uri uri, ContentValues values, String selection, String[] arguments) {
    return 0;
  }
}
