package org.minicpmv.app;

import android.content.ContentProvider;
import android.content.ContentValues;
import android.content.Context;
import android.database.Cursor;
import android.database.MatrixCursor;
import android.net.Uri;
import android.os.ParcelFileDescriptor;
import android.provider.OpenableColumns;
import java.io.File;
import java.io.FileNotFoundException;

/** Offers the camera app one file to write a photo into. */
public final class PhotoProvider extends ContentProvider {
  private static final String AUTHORITY = "org.minicpmv.app.photos";
  private static final String NAME = "photo.jpg";

  /** Returns the URI that the camera writes to, after deleting the previous photo. */
  static Uri newPhoto(Context context) {
    forget(context);
    return photo(context);
  }

  static Uri photo(Context context) {
    return new Uri.Builder().scheme("content").authority(AUTHORITY).path(NAME).build();
  }

  static void forget(Context context) {
    file(context).delete();
  }

  @Override
  public boolean onCreate() {
    return true;
  }

  @Override
  public ParcelFileDescriptor openFile(Uri uri, String mode) throws FileNotFoundException {
    check(uri);
    return ParcelFileDescriptor.open(file(getContext()), ParcelFileDescriptor.parseMode(mode));
  }

  @Override
  public String getType(Uri uri) {
    return "image/jpeg";
  }

  /** Whether a URI points into this app. A URI from another app's picker must not. */
  static boolean isOurs(Uri uri) {
    String authority = String.valueOf(uri.getAuthority()); // may begin with a user's number and @
    return !"content".equals(uri.getScheme())
        || AUTHORITY.equals(authority.substring(authority.lastIndexOf('@') + 1));
  }

  /** Some camera apps query the file's name and size before they write. */
  @Override
  public Cursor query(
      Uri uri, String[] projection, String selection, String[] arguments, String order) {
    MatrixCursor cursor =
        new MatrixCursor(new String[] {OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE});
    cursor.addRow(new Object[] {NAME, file(getContext()).length()});
    return cursor;
  }

  @Override
  public Uri insert(Uri uri, ContentValues values) {
    throw new UnsupportedOperationException("there is only one file");
  }

  @Override
  public int delete(Uri uri, String selection, String[] arguments) {
    throw new UnsupportedOperationException("only the app deletes the file");
  }

  @Override
  public int update(Uri uri, ContentValues values, String selection, String[] arguments) {
    throw new UnsupportedOperationException("the file has no values");
  }

  private static void check(Uri uri) throws FileNotFoundException {
    if (!("/" + NAME).equals(uri.getPath())) {
      throw new FileNotFoundException(uri.toString());
    }
  }

  private static File file(Context context) {
    return new File(context.getCacheDir(), NAME);
  }
}
