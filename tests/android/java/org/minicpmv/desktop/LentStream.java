package org.minicpmv.desktop;

import java.io.IOException;
import java.io.InputStream;
import org.minicpmv.core.LentFile;

/** What another app gives as a stream, which can only be copied. */
public final class LentStream implements LentFile {
  private final InputStream source;
  private final long size;
  private final String address;

  /** Args: size: -1: unknown. */
  public LentStream(InputStream source, long size, String address) {
    this.source = source;
    this.size = size;
    this.address = address;
  }

  @Override
  public String address() {
    return address;
  }

  @Override
  public String name() {
    return "a stream";
  }

  @Override
  public long size() {
    return size;
  }

  @Override
  public boolean isUsable() {
    return false;
  }

  @Override
  public String stamp() {
    throw new AssertionError("a stream is not used again");
  }

  @Override
  public InputStream read() {
    return source;
  }

  @Override
  public void handTo(String socket) {
    throw new AssertionError("a stream is not given to the engine");
  }

  @Override
  public void close() throws IOException {
    source.close();
  }
}
