package org.minicpmv.app;

import android.content.ContentProvider;
import android.content.ContentValues;
import android.content.res.AssetFileDescriptor;
import android.database.Cursor;
import android.database.MatrixCursor;
import android.net.Uri;
import android.os.ParcelFileDescriptor;
import android.provider.OpenableColumns;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import org.robolectric.Robolectric;

/** Another app, from which the user chooses a file. */
public final class OtherApp extends ContentProvider {
  private static final String AUTHORITY = "org.example.files";

  private File file; // null: it sends nothing
  private RuntimeException failure; // null: none
  private long before; // bytes of the file before those that it gives

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

  /** Installs an app that gives a file's bytes as a part of a larger one. */
  static OtherApp embedding(File file) throws IOException {
    File larger = File.createTempFile("larger", ".bin");
    OtherApp app = with(larger);
    app.before = 100;
    try (OutputStream target = new FileOutputStream(larger)) {
      target.write(new byte[100]);
      Files.copy(file.toPath(), target);
    }
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
  public AssetFileDescriptor openAssetFile(Uri uri, String mode) throws FileNotFoundException {
    ParcelFileDescriptor opened = openFile(uri, mode);
    long end = AssetFileDescriptor.UNKNOWN_LENGTH;
    return opened == null
        ? null
        : new AssetFileDescriptor(opened, before, before == 0 ? end : file.length() - before);
  }

  @Override
  public Cursor query(
      Uri uri, String[] projection, String selection, String[] arguments, String order) {
    if (file == null) {
      return null;
    }
    MatrixCursor found = new MatrixCursor(new String[] {OpenableColumns.DISPLAY_NAME});
    found.addRow(new Object[] {file.getName()});
    return found;
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
