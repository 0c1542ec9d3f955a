package org.minicpmv.desktop;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.LentFile;
import org.minicpmv.system.Handover;

/**
 * A file of this PC that plays one of another app. A file beside it, named `.locked` at the end, plays
 * that the user revoked the permission.
 */
public final class LentPath implements LentFile {
  private final File file;

  private LentPath(File file) {
    this.file = file;
  }

  /** Opens it. */
  public static LentPath open(String path) throws EngineException {
    File file = new File(path);
    if (!file.exists()) {
      throw new EngineException(EngineException.WEIGHTS_GONE, path + ": no such file");
    }
    if (new File(path + ".locked").exists()) {
      throw new EngineException(EngineException.WEIGHTS_LOCKED, path + ": permission denied");
    }
    return new LentPath(file);
  }

  @Override
  public String address() {
    return file.getPath();
  }

  @Override
  public String name() {
    return file.getName();
  }

  @Override
  public long size() {
    return file.length();
  }

  @Override
  public boolean isUsable() {
    return true;
  }

  @Override
  public String stamp() {
    return file.length() + " " + file.lastModified();
  }

  @Override
  public InputStream read() throws IOException {
    return new FileInputStream(file);
  }

  @Override
  public void handTo(String socket) throws IOException {
    Handover.send(file.getPath(), socket);
  }

  @Override
  public void close() {}
}
