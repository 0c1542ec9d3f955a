package org.minicpmv.app;

import android.content.ContentResolver;
import android.content.Intent;
import android.content.res.AssetFileDescriptor;
import android.database.Cursor;
import android.net.LocalSocket;
import android.net.LocalSocketAddress;
import android.net.Uri;
import android.provider.OpenableColumns;
import android.system.ErrnoException;
import android.system.Os;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.LentFile;

/**
 * A document of another app. All that is used of it is its descriptor: opening `/proc/self/fd/N`
 * would need the other app's rights.
 */
final class LentDocument implements LentFile {
  private final Uri address;
  private final String name;
  private final AssetFileDescriptor file;

  private LentDocument(Uri address, String name, AssetFileDescriptor file) {
    this.address = address;
    this.name = name;
    this.file = file;
  }

  /** Opens a document that the user has just chosen. */
  static LentDocument of(App app, Uri chosen) throws IOException {
    ContentResolver resolver = app.getContentResolver();
    AssetFileDescriptor file = resolver.openAssetFileDescriptor(chosen, "r");
    if (file == null) {
      throw new FileNotFoundException(ChosenPicture.EMPTY);
    }
    return new LentDocument(chosen, nameOf(resolver, chosen), file);
  }

  /** Opens a document that was chosen earlier, perhaps before a restart. */
  static LentDocument open(App app, Uri chosen) throws EngineException {
    try {
      return of(app, chosen);
    } catch (SecurityException e) {
      throw new EngineException(EngineException.WEIGHTS_LOCKED, String.valueOf(e.getMessage()), e);
    } catch (IOException | RuntimeException e) { // another app's provider may fail in any way
      throw new EngineException(EngineException.WEIGHTS_GONE, String.valueOf(e.getMessage()), e);
    }
  }

  /** Gives up the right to open a document again. */
  static void giveBack(App app, Uri chosen) {
    try {
      int flags = Intent.FLAG_GRANT_READ_URI_PERMISSION;
      app.getContentResolver().releasePersistableUriPermission(chosen, flags);
    } catch (SecurityException e) {
      return; // it was never granted, or is revoked
    }
  }

  private static String nameOf(ContentResolver resolver, Uri chosen) {
    String[] wanted = {OpenableColumns.DISPLAY_NAME};
    try (Cursor found = resolver.query(chosen, wanted, null, null, null)) {
      if (found != null && found.moveToFirst() && found.getString(0) != null) {
        return found.getString(0);
      }
    } catch (RuntimeException e) { // another app's provider may fail in any way
      return String.valueOf(chosen.getLastPathSegment());
    }
    return String.valueOf(chosen.getLastPathSegment());
  }

  @Override
  public String address() {
    return address.toString();
  }

  @Override
  public String name() {
    return name;
  }

  @Override
  public long size() {
    return file.getLength();
  }

  @Override
  public boolean isUsable() {
    long bytes = file.getParcelFileDescriptor().getStatSize(); // -1 of a pipe
    return bytes >= 0 && bytes == file.getLength() && file.getStartOffset() == 0;
  }

  @Override
  public String stamp() throws IOException {
    long seconds;
    try {
      seconds = Os.fstat(descriptor()).st_mtime;
    } catch (ErrnoException e) {
      throw new IOException(e.getMessage(), e);
    }
    // Without a time, any file may have changed.
    return size() + " " + (seconds == 0 ? "at " + System.nanoTime() : seconds);
  }

  @Override
  public InputStream read() throws IOException {
    return isUsable() ? new Reader(file) : file.createInputStream();
  }

  @Override
  public void handTo(String socket) throws IOException {
    try (LocalSocket connection = new LocalSocket()) {
      connection.connect(new LocalSocketAddress(socket));
      connection.setFileDescriptorsForSend(new FileDescriptor[] {descriptor()});
      connection.getOutputStream().write(1); // descriptors go with a byte
    }
  }

  @Override
  public void close() throws IOException {
    file.close();
  }

  private FileDescriptor descriptor() {
    return file.getFileDescriptor();
  }

  /** Reads from the beginning, and leaves the descriptor open at the place where it was. */
  private static final class Reader extends InputStream {
    private final FileChannel channel;
    private long place;

    Reader(AssetFileDescriptor file) {
      channel = new FileInputStream(file.getFileDescriptor()).getChannel();
    }

    @Override
    public int read() throws IOException {
      byte[] one = new byte[1];
      return read(one, 0, 1) < 0 ? -1 : one[0] & 255;
    }

    @Override
    public int read(byte[] target, int offset, int length) throws IOException {
      int count = channel.read(ByteBuffer.wrap(target, offset, length), place);
      place += Math.max(count, 0);
      return count;
    }

    @Override
    public long skip(long count) throws IOException {
      long skipped = Math.max(0, Math.min(count, channel.size() - place));
      place += skipped;
      return skipped;
    }
  }
}
