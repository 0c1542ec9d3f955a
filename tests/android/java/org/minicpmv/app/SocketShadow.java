package org.minicpmv.app;

import android.net.LocalSocket;
import android.net.LocalSocketAddress;
import java.io.FileDescriptor;
import java.io.IOException;
import java.io.OutputStream;
import java.lang.management.ManagementFactory;
import java.lang.reflect.Field;
import org.minicpmv.system.Handover;
import org.robolectric.annotation.Implementation;
import org.robolectric.annotation.Implements;

/**
 * Sends descriptors to a socket of this PC, where Robolectric has no sockets of Android: another
 * process does it, for a file that it opens by the descriptor's number.
 */
@Implements(LocalSocket.class)
public final class SocketShadow {
  private String name;
  private FileDescriptor[] descriptors;

  @Implementation
  protected void connect(LocalSocketAddress address) {
    if (address.getNamespace() != LocalSocketAddress.Namespace.ABSTRACT) {
      throw new AssertionError("the engine's socket has an abstract name");
    }
    name = address.getName();
  }

  @Implementation
  protected void setFileDescriptorsForSend(FileDescriptor[] sent) {
    descriptors = sent;
  }

  @Implementation
  protected OutputStream getOutputStream() {
    return new OutputStream() {
      @Override
      public void write(int value) throws IOException {
        Handover.send(path(descriptors[0]), name);
      }
    };
  }

  @Implementation
  protected void close() {}

  private static String path(FileDescriptor descriptor) throws IOException {
    String process = ManagementFactory.getRuntimeMXBean().getName().split("@")[0];
    try {
      Field number = FileDescriptor.class.getDeclaredField("fd");
      number.setAccessible(true);
      return "/proc/" + process + "/fd/" + number.getInt(descriptor);
    } catch (ReflectiveOperationException e) {
      throw new IOException(e);
    }
  }
}
