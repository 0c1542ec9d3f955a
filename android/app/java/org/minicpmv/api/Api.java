package org.minicpmv.api;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.net.BindException;
import java.security.SecureRandom;
import java.util.Base64;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.json.JSONException;
import org.json.JSONObject;
import org.minicpmv.core.Assistant;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.Extension;
import org.minicpmv.core.FileTools;
import org.minicpmv.core.Host;
import org.minicpmv.core.Json;

/**
 * OpenAI's chat completions for other apps on this phone, with the conversation and picture of
 * `minicpmv serve`: off until the user switches it on, on loopback only, and only with its token.
 *
 * <p>The command `api` and the state's field of this name are described in page/BRIDGE.md.
 */
public final class Api implements Extension {
  public static final String PORT_TAKEN = "port_taken";
  public static final String SERVER_FAILED = "server_failed";
  private static final String NAME = "api";
  private static final String MODEL = "minicpm-v";
  private static final int PORT = 8080;
  private static final int LEAST_PORT = 1024; // those below belong to the system
  private static final int MOST_PORT = 65535;
  private static final int WAITING = 4; // requests besides the one in progress
  private static final int TOKEN_BYTES = 24;
  private static final long END_SECONDS = 10;

  private final Assistant assistant;
  private final Platform platform;
  private final File file;
  private final Fields fields;
  private final String model;
  private final int waiting;
  private final ExecutorService starter = Executors.newSingleThreadExecutor();

  private JSONObject chosen = new JSONObject(); // `on`, `port`, `token`
  private ApiServer server; // null: it does not run
  private EngineException problem; // why it does not; null: none
  private long answered; // by servers that have ended
  private long refused;
  private String published = "";

  /** @param file where the user's choices and the token are kept */
  public Api(Assistant assistant, Host host, Platform platform, File file) throws IOException {
    this(assistant, host, platform, file, MODEL, WAITING);
  }

  /** As above, for tests; `waiting`: how many requests may wait besides the one in progress. */
  public Api(
      Assistant assistant, Host host, Platform platform, File file, String model, int waiting)
      throws IOException {
    this.assistant = assistant;
    this.platform = platform;
    this.file = file;
    this.model = model;
    this.waiting = waiting;
    try (InputStream table = host.configFile(Fields.FILE)) {
      fields = new Fields(FileTools.read(table));
    }
    try {
      chosen = file.exists() ? Json.parse(FileTools.read(file)) : chosen;
    } catch (IOException | JSONException e) {
      chosen = new JSONObject(); // off, with a new token
    }
    if (token().isEmpty()) {
      Json.put(chosen, "token", newToken());
    }
  }

  @Override
  public String name() {
    return NAME;
  }

  @Override
  public void receive(JSONObject command) throws EngineException {
    synchronized (this) {
      if (command.opt("on") instanceof Boolean) {
        Json.put(chosen, "on", command.optBoolean("on"));
      }
      int port = command.optInt("port");
      if (port >= LEAST_PORT && port <= MOST_PORT) {
        Json.put(chosen, "port", port);
      }
      if (command.optBoolean("renew")) {
        Json.put(chosen, "token", newToken());
      }
      try {
        FileTools.write(file, chosen.toString());
      } catch (IOException e) {
        throw FileTools.failure(EngineException.FILE_ERROR, "the choice could not be saved", e);
      }
    }
    starter.execute(new Restart(true));
  }

  @Override
  public void foreground() {
    starter.execute(new Restart(false));
  }

  @Override
  public synchronized JSONObject state() {
    JSONObject state =
        Json.object(
            "on", chosen.optBoolean("on"),
            "port", port(),
            "token", token(),
            "model", model,
            "answered", answered + (server == null ? 0 : server.answered.get()),
            "refused", refused + (server == null ? 0 : server.refused.get()));
    if (server != null) {
      Json.put(state, "address", "http://" + ApiServer.HOST + ":" + server.port() + "/v1");
    }
    if (problem != null) {
      Json.put(
          state, "problem", Json.object("code", problem.code(), "message", problem.getMessage()));
    }
    return state;
  }

  @Override
  public void close() {
    starter.execute(
        new Runnable() {
          @Override
          public void run() {
            stop();
          }
        });
    starter.shutdown();
    try {
      starter.awaitTermination(END_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private String token() {
    return chosen.optString("token");
  }

  private int port() {
    return chosen.optInt("port", PORT);
  }

  private static String newToken() {
    byte[] secret = new byte[TOKEN_BYTES];
    new SecureRandom().nextBytes(secret);
    return Base64.getUrlEncoder().withoutPadding().encodeToString(secret);
  }

  private void start() {
    int port;
    String token;
    synchronized (this) {
      port = port();
      token = token();
    }
    ApiServer started = null;
    EngineException failure = null;
    try {
      started = new ApiServer(assistant, fields, model, token, port, waiting, new Tick());
    } catch (BindException e) {
      failure =
          new EngineException(
              PORT_TAKEN, "port " + port + " cannot be used: " + e.getMessage(), e);
    } catch (IOException e) {
      failure = new EngineException(SERVER_FAILED, String.valueOf(e.getMessage()), e);
    }
    synchronized (this) {
      server = started;
      problem = failure;
    }
    platform.setServing(started != null);
  }

  private void stop() {
    ApiServer ended;
    synchronized (this) {
      ended = server;
      server = null;
      problem = null;
    }
    if (ended != null) {
      ended.close();
      synchronized (this) {
        answered += ended.answered.get();
        refused += ended.refused.get();
      }
      platform.setAwake(false);
      platform.setServing(false);
    }
  }

  /** Starts or stops the server, as was chosen. */
  private final class Restart implements Runnable {
    private final boolean always; // also a server that runs

    Restart(boolean always) {
      this.always = always;
    }

    @Override
    public void run() {
      boolean isWanted;
      boolean isRunning;
      synchronized (Api.this) {
        isWanted = chosen.optBoolean("on");
        isRunning = server != null;
      }
      if (isRunning && !always) {
        return;
      }
      stop();
      if (isWanted) {
        start();
      }
      assistant.onChange();
    }
  }

  /** Tells the phone and the page what has changed since the last time. */
  private final class Tick implements Runnable {
    @Override
    public void run() {
      ApiServer running;
      synchronized (Api.this) {
        running = server;
      }
      if (running == null) {
        return;
      }
      platform.setAwake(running.requests() > 0);
      String now = state().toString();
      if (!now.equals(published)) {
        published = now;
        assistant.onChange();
      }
    }
  }
}
