package org.minicpmv.api;

import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * A client's connection: reads requests and writes responses, each within limits of size and time.
 *
 * <p>All methods except {@link #close} and {@link #closeIfLate} are called on its own thread.
 */
final class HttpConnection implements Runnable, Closeable {
  private static final long IDLE_NANOS = TimeUnit.SECONDS.toNanos(10); // head; pause in a body
  private static final long BODY_NANOS = TimeUnit.SECONDS.toNanos(60); // a whole body
  private static final long WRITE_NANOS = TimeUnit.SECONDS.toNanos(60); // for the client to read
  private static final long LOOK_NANOS = TimeUnit.MILLISECONDS.toNanos(100);
  private static final int HEAD_LIMIT = 16 << 10; // bytes
  private static final int BLOCK = 64 << 10; // bytes
  private static final byte[] HEAD_END = {'\r', '\n', '\r', '\n'};
  private static final byte[] CONTINUE = "HTTP/1.1 100 Continue\r\n\r\n".getBytes();

  /** Answers requests. */
  interface Handler {
    void handle(HttpRequest request, HttpConnection connection) throws IOException, ApiError;

    /** Called when a connection has ended. */
    void ended(HttpConnection connection);
  }

  private final Socket socket;
  private final Handler handler;
  private final InputStream input;
  private final OutputStream output;
  private final byte[] buffer = new byte[HEAD_LIMIT]; // what was read and not used: from..to
  private int from;
  private int to;
  private HttpRequest request; // the current one
  private long unread; // bytes of its body
  private boolean hasBegun; // the response
  private long looked = System.nanoTime(); // when `isGone` looked
  private volatile long idleSince; // when it began to wait for the client; 0: it does not
  private volatile long deadline; // by which the client must have read; 0: nothing is written

  HttpConnection(Socket socket, Handler handler) throws IOException {
    this.socket = socket;
    this.handler = handler;
    socket.setTcpNoDelay(true);
    input = socket.getInputStream();
    output = socket.getOutputStream();
    idleSince = System.nanoTime();
  }

  @Override
  public void run() {
    try {
      while (serveOne()) {
        continue;
      }
    } catch (IOException e) {
      return; // the client has gone, or was too slow
    } finally {
      close();
      handler.ended(this);
    }
  }

  /** Returns since when the client has been silent; 0 while it is being answered. */
  long idleSince() {
    return idleSince;
  }

  /** Closes the connection if the client does not read its response. */
  void closeIfLate(long now) {
    long limit = deadline;
    if (limit != 0 && now - limit > 0) {
      close();
    }
  }

  @Override
  public void close() {
    try {
      socket.close();
    } catch (IOException e) {
      return; // it is closed all the same
    }
  }

  /** Answers a request; returns whether another one may follow. */
  private boolean serveOne() throws IOException {
    request = null;
    hasBegun = false;
    unread = 0;
    try {
      byte[] head = readHead();
      if (head == null) {
        return false;
      }
      request = new HttpRequest(head);
      unread = request.length;
      idleSince = 0;
      handler.handle(request, this);
    } catch (ApiError e) {
      respond(e);
    }
    if (unread > 0 || request == null) {
      drain();
      return false;
    }
    return request.keepsAlive;
  }

  /**
   * Reads the request's body.
   *
   * @param limit bytes
   * @param budget bytes of all bodies that are being read; the caller gives them back
   */
  byte[] readBody(int limit, Budget budget) throws IOException, ApiError {
    if (request.length > limit) {
      throw new ApiError(
          413, "request_too_large", null,
          "a request may have at most " + (limit >> 20) + " MiB");
    }
    if (request.awaitsConsent()) {
      write(CONTINUE, CONTINUE.length);
    }
    byte[] body = new byte[(int) Math.min(request.length, BLOCK)];
    int count = 0;
    long end = System.nanoTime() + BODY_NANOS;
    while (unread > 0) {
      if (count == body.length) { // memory grows with what arrives, not with what is announced
        body = Arrays.copyOf(body, (int) Math.min(request.length, 2L * count));
      }
      int got = readSome(body, count, end);
      budget.take(got);
      count += got;
    }
    idleSince = 0;
    return body;
  }

  /** Reads a part of the body. */
  private int readSome(byte[] target, int at, long end) throws IOException, ApiError {
    int wanted = (int) Math.min(unread, target.length - at);
    int got = Math.min(wanted, to - from);
    if (got > 0) {
      System.arraycopy(buffer, from, target, at, got);
      from += got;
    } else {
      long now = System.nanoTime();
      idleSince = now;
      if (now - end > 0) {
        throw new ApiError(408, "timeout", null, "the request did not arrive in time");
      }
      got = read(target, at, wanted, now + IDLE_NANOS);
      if (got < 0) {
        throw new IOException("the client has gone");
      }
    }
    unread -= got;
    return got;
  }

  /** Whether the client has gone, as far as a look now and then tells; keeps what it has sent. */
  boolean isGone() {
    long now = System.nanoTime();
    if (now - looked < LOOK_NANOS) {
      return false;
    }
    looked = now;
    if (from == to) {
      from = 0;
      to = 0;
    }
    if (to == buffer.length) {
      return false; // there is no room to look; writing will tell
    }
    try {
      socket.setSoTimeout(1);
      int got = input.read(buffer, to, buffer.length - to);
      to += Math.max(got, 0);
      return got < 0;
    } catch (SocketTimeoutException e) {
      return false;
    } catch (IOException e) {
      return true;
    }
  }

  /** Sends a whole response. */
  void respond(int status, Map<String, String> fields, byte[] body) throws IOException {
    String head = head(status, fields, "Content-Length: " + body.length);
    byte[] begin = head.getBytes(StandardCharsets.ISO_8859_1);
    boolean isHead = request != null && request.method.equals("HEAD");
    byte[] whole = Arrays.copyOf(begin, begin.length + (isHead ? 0 : body.length));
    System.arraycopy(body, 0, whole, begin.length, whole.length - begin.length);
    write(whole, whole.length);
  }

  /** Sends an error, unless a response has begun. */
  void respond(ApiError error) throws IOException {
    if (!hasBegun) {
      byte[] body = Shown.ascii(error.toJson()).getBytes(StandardCharsets.US_ASCII);
      respond(error.status, Routes.fields(error), body);
    }
  }

  /** Begins a response whose length is not known. */
  void beginStream(Map<String, String> fields) throws IOException {
    String how = request.isOld ? "Connection: close" : "Transfer-Encoding: chunked";
    byte[] head = head(200, fields, how).getBytes(StandardCharsets.ISO_8859_1);
    write(head, head.length);
  }

  /** Sends a part of the response; an empty one ends it. */
  void sendPart(String text) throws IOException {
    byte[] part = text.getBytes(StandardCharsets.US_ASCII);
    String size = Integer.toHexString(part.length) + "\r\n";
    byte[] whole = request.isOld
        ? part : (size + text + "\r\n").getBytes(StandardCharsets.US_ASCII);
    write(whole, whole.length);
  }

  private String head(int status, Map<String, String> fields, String length) {
    hasBegun = true;
    StringBuilder head = new StringBuilder("HTTP/1.1 ").append(status).append(" \r\n");
    for (Map.Entry<String, String> field : fields.entrySet()) {
      head.append(field.getKey()).append(": ").append(field.getValue()).append("\r\n");
    }
    boolean isLast = request == null || !request.keepsAlive || unread > 0;
    if (isLast && !length.startsWith("Connection")) {
      head.append("Connection: close\r\n");
    }
    return head.append(length).append("\r\n\r\n").toString();
  }

  private void write(byte[] bytes, int count) throws IOException {
    deadline = System.nanoTime() + WRITE_NANOS;
    output.write(bytes, 0, count);
    output.flush();
    deadline = 0;
  }

  /** Reads a request's head; null if the client has gone. */
  private byte[] readHead() throws IOException, ApiError {
    long start = System.nanoTime();
    idleSince = start;
    int searched = from;
    while (true) {
      while (to - from >= 2 && buffer[from] == '\r' && buffer[from + 1] == '\n') {
        from += 2; // some clients send an empty line behind a body
        searched = from;
      }
      for (int i = Math.max(from, searched - 3); i + 4 <= to; i++) {
        if (Arrays.equals(Arrays.copyOfRange(buffer, i, i + 4), HEAD_END)) {
          byte[] head = Arrays.copyOfRange(buffer, from, i);
          from = i + 4;
          return head;
        }
      }
      searched = to;
      if (from > 0) {
        System.arraycopy(buffer, from, buffer, 0, to - from);
        searched -= from;
        to -= from;
        from = 0;
      }
      if (to == buffer.length) {
        throw new ApiError(
            431, "head_too_large", null, "a request's head may have " + HEAD_LIMIT + " bytes");
      }
      int got = read(buffer, to, buffer.length - to, start + IDLE_NANOS);
      if (got < 0) {
        return null;
      }
      to += got;
    }
  }

  /** Lets the client send the rest, so that it can read why it is not wanted. */
  private void drain() throws IOException {
    long start = System.nanoTime();
    idleSince = start;
    socket.shutdownOutput();
    from = 0;
    to = 0;
    while (read(buffer, 0, buffer.length, start + IDLE_NANOS) >= 0) {
      continue;
    }
  }

  /** Reads what there is; throws if nothing comes until `end`. */
  private int read(byte[] target, int at, int count, long end) throws IOException {
    long millis = TimeUnit.NANOSECONDS.toMillis(end - System.nanoTime());
    if (millis <= 0) {
      throw new SocketTimeoutException("the client is too slow");
    }
    socket.setSoTimeout((int) millis);
    return input.read(target, at, count);
  }
}
