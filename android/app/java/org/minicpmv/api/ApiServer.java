package org.minicpmv.api;

import java.io.Closeable;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.atomic.AtomicLong;
import org.minicpmv.core.Assistant;

/**
 * The server: a port on loopback, a thread for each connection, and a limit on their number.
 *
 * <p>Above the limit, the connection that has been idle longest is dropped: a client that sends
 * nothing holds a connection, never a place in the queue.
 */
final class ApiServer implements Closeable, HttpConnection.Handler {
  static final String HOST = "127.0.0.1";
  private static final byte[] LOOPBACK = {127, 0, 0, 1};
  private static final int CONNECTIONS_LIMIT = 64;
  private static final int BACKLOG = 50; // connections that the system keeps for the server
  private static final long TICK_MILLIS = 500;
  private static final long RETRY_MILLIS = 50;

  final AtomicLong answered = new AtomicLong();
  final AtomicLong refused = new AtomicLong(); // requests of foreign pages, or without the token
  private final ServerSocket listener = new ServerSocket();
  private final AnswerQueue queue;
  private final Routes routes;
  private final Guard guard;
  private final Runnable onTick;
  private final Set<HttpConnection> connections = new HashSet<>();
  private volatile boolean isClosed;

  /**
   * Begins to answer.
   *
   * @param port 0: any that is free
   * @param onTick called now and then, on a thread of its own
   * @throws IOException if the port is taken, or there is no permission
   */
  ApiServer(
      Assistant assistant,
      Fields fields,
      String model,
      String token,
      int port,
      int waiting,
      Runnable onTick)
      throws IOException {
    queue = new AnswerQueue(assistant, waiting);
    routes = new Routes(assistant, queue, fields, model);
    guard = new Guard(token);
    this.onTick = onTick;
    InetAddress host = InetAddress.getByAddress(HOST, LOOPBACK);
    try {
      listener.bind(new InetSocketAddress(host, port), BACKLOG);
    } catch (IOException e) {
      listener.close();
      throw e;
    }
    begin("api", new Acceptor());
    begin("api-time", new Ticker());
  }

  int port() {
    return listener.getLocalPort();
  }

  /** Returns how many requests are waiting or being answered. */
  int requests() {
    return queue.admitted();
  }

  @Override
  public void handle(HttpRequest request, HttpConnection connection)
      throws IOException, ApiError {
    try {
      guard.check(request);
    } catch (ApiError e) {
      refused.incrementAndGet();
      throw e;
    }
    if (routes.answer(request, connection)) {
      answered.incrementAndGet();
    }
  }

  @Override
  public void ended(HttpConnection connection) {
    synchronized (connections) {
      connections.remove(connection);
      connections.notifyAll();
    }
  }

  /** Cancels the answers, lets their clients know, and closes the port. */
  @Override
  public void close() {
    isClosed = true;
    try {
      listener.close();
    } catch (IOException e) {
      return; // it is closed all the same
    } finally {
      queue.end();
      endConnections();
    }
  }

  /** Closes idle connections at once, the others when they are answered or after a time. */
  private void endConnections() {
    long end = System.nanoTime() + 5_000_000_000L;
    synchronized (connections) {
      while (!connections.isEmpty()) {
        boolean isLate = System.nanoTime() - end > 0;
        for (HttpConnection connection : connections) {
          if (isLate || connection.idleSince() != 0) {
            connection.close();
          }
        }
        if (isLate) {
          return;
        }
        try {
          connections.wait(TICK_MILLIS);
        } catch (InterruptedException e) {
          Thread.currentThread().interrupt();
          return;
        }
      }
    }
  }

  private static void begin(String name, Runnable task) {
    Thread thread = new Thread(task, name);
    thread.setDaemon(true);
    thread.start();
  }

  /** Makes room for a connection; returns whether there is any. */
  private boolean makeRoom() {
    if (connections.size() < CONNECTIONS_LIMIT) {
      return true;
    }
    HttpConnection oldest = null;
    for (HttpConnection connection : connections) {
      long since = connection.idleSince();
      if (since != 0 && (oldest == null || since - oldest.idleSince() < 0)) {
        oldest = connection;
      }
    }
    if (oldest != null) {
      connections.remove(oldest);
      oldest.close();
    }
    return oldest != null;
  }

  /** Accepts connections. */
  private final class Acceptor implements Runnable {
    @Override
    public void run() {
      while (!isClosed) {
        try {
          Socket socket = listener.accept();
          if (!take(socket)) {
            socket.close();
          }
        } catch (IOException e) {
          pause(); // the client has gone already, or no descriptor is left
        }
      }
    }

    private void pause() {
      try {
        Thread.sleep(RETRY_MILLIS);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }

    private boolean take(Socket socket) throws IOException {
      HttpConnection connection = new HttpConnection(socket, ApiServer.this);
      synchronized (connections) {
        if (isClosed || !makeRoom()) {
          return false;
        }
        connections.add(connection);
      }
      begin("api-client", connection);
      return true;
    }
  }

  /** Ends connections whose client does not read. */
  private final class Ticker implements Runnable {
    @Override
    public void run() {
      while (!isClosed) {
        try {
          Thread.sleep(TICK_MILLIS);
        } catch (InterruptedException e) {
          return;
        }
        long now = System.nanoTime();
        synchronized (connections) {
          for (HttpConnection connection : connections) {
            connection.closeIfLate(now);
          }
        }
        onTick.run();
      }
    }
  }
}
