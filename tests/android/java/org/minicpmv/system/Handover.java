package org.minicpmv.system;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;

/** Sends descriptors to an abstract Unix socket of this PC, for which Java has no call. */
public final class Handover {
  private Handover() {}

  /** Opens a file in another process, which sends its descriptor. */
  public static void send(String path, String socket) throws IOException {
    Process process =
        new ProcessBuilder(
                System.getProperty("python"), System.getProperty("handover"), socket, path)
            .redirectErrorStream(true)
            .start();
    ByteArrayOutputStream said = new ByteArrayOutputStream();
    try (InputStream output = process.getInputStream()) {
      for (int value; (value = output.read()) >= 0; ) {
        said.write(value);
      }
    }
    try {
      if (process.waitFor() != 0) {
        throw new IOException(said.toString());
      }
    } catch (InterruptedException e) {
      throw new IOException(e);
    }
  }
}
