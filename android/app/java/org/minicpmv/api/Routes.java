package org.minicpmv.api;

import java.io.IOException;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONObject;
import org.minicpmv.core.Assistant;
import org.minicpmv.core.Json;
import org.minicpmv.core.PageFiles;
import org.minicpmv.core.Settings;

/** What the server answers to which path: those of `minicpmv serve`. */
final class Routes {
  static final int BODY_LIMIT = 24 << 20; // bytes: a picture in Base64, and a long conversation
  private static final long BODIES_LIMIT = 48 << 20; // of all that are being received or parsed
  private static final String COMPLETIONS = "/v1/chat/completions";
  private static final String MODELS = "/v1/models";
  private static final String HEALTH = "/health";
  private static final String JSON = "application/json";
  private static final long STEP_MILLIS = 100; // between two looks at whether the client has gone

  private final Assistant assistant;
  private final AnswerQueue queue;
  private final Fields fields;
  private final String model;
  private final long created = System.currentTimeMillis() / 1000;
  private final Budget bodies = new Budget(BODIES_LIMIT);

  Routes(Assistant assistant, AnswerQueue queue, Fields fields, String model) {
    this.assistant = assistant;
    this.queue = queue;
    this.fields = fields;
    this.model = model;
  }

  /** Returns the header fields of an error. */
  static Map<String, String> fields(ApiError error) {
    Map<String, String> fields = fields(JSON);
    if (error.status == 429) {
      fields.put("Retry-After", "1");
    } else if (error.status == 401) {
      fields.put("WWW-Authenticate", "Bearer");
    }
    return fields;
  }

  private static Map<String, String> fields(String type) {
    Map<String, String> fields = new LinkedHashMap<>(PageFiles.headers());
    fields.put("Content-Type", type);
    return fields;
  }

  /** Answers a request that is allowed; returns whether the model gave an answer. */
  boolean answer(HttpRequest request, HttpConnection connection) throws IOException, ApiError {
    String path = request.path;
    if (path.equals(COMPLETIONS)) {
      allow(request, "POST");
      return complete(request, connection);
    }
    boolean isModel = path.startsWith(MODELS + "/");
    if (!isModel && !path.equals(MODELS) && !path.equals(HEALTH)) {
      throw new ApiError(404, null, null, request.method + " " + shown(path) + ": Not Found");
    }
    allow(request, "GET");
    if (path.equals(HEALTH)) {
      send(
          connection,
          Json.object("status", "ok", "model", model, "requests", queue.admitted()));
    } else if (!isModel) {
      send(connection, Json.object("object", "list", "data", new JSONArray().put(described())));
    } else {
      String name = decoded(path.substring(MODELS.length() + 1));
      if (!name.equals(model)) {
        throw ChatRequest.noModel(name, model);
      }
      send(connection, described());
    }
    return false;
  }

  private static void allow(HttpRequest request, String method) throws ApiError {
    boolean isHead = method.equals("GET") && request.method.equals("HEAD");
    if (!request.method.equals(method) && !isHead) {
      throw new ApiError(
          405, null, null,
          request.method + " " + shown(request.path) + ": Method Not Allowed; use " + method);
    }
  }

  private static String shown(String path) {
    return Shown.beginning(path);
  }

  private static String decoded(String text) throws ApiError {
    try {
      return URLDecoder.decode(text, StandardCharsets.UTF_8.name());
    } catch (IOException | IllegalArgumentException e) {
      throw new ApiError(404, null, null, "the name is not percent-encoded UTF-8");
    }
  }

  private JSONObject described() {
    return Json.object(
        "id", model, "object", "model", "created", created, "owned_by", "minicpmv");
  }

  private static void send(HttpConnection connection, JSONObject content) throws IOException {
    byte[] body = Shown.ascii(content).getBytes(StandardCharsets.US_ASCII);
    connection.respond(200, fields(JSON), body);
  }

  private boolean complete(HttpRequest request, HttpConnection connection)
      throws IOException, ApiError {
    if (!request.mediaType().equals(JSON)) {
      throw new ApiError(415, "invalid_media_type", null, "expected " + JSON);
    }
    Budget budget = new Budget(bodies);
    ChatRequest chat;
    PendingAnswer answer;
    try {
      byte[] body = connection.readBody(BODY_LIMIT, budget);
      queue.enter(); // a client that is slow to send blocks nobody
      boolean isQueued = false;
      try {
        chat = read(body);
        answer = queue.begin(chat);
        isQueued = true;
      } finally {
        if (!isQueued) {
          queue.leave();
        }
      }
    } catch (OutOfMemoryError e) {
      throw new ApiError(503, "out_of_memory", null, "the request is too large for this phone");
    } finally {
      budget.giveBack();
    }
    try {
      return chat.isStream
          ? stream(chat, answer, connection)
          : whole(chat, answer, connection);
    } finally {
      queue.cancel(answer); // if it is still under way, nobody reads it any more
    }
  }

  private ChatRequest read(byte[] body) throws ApiError {
    Settings settings = assistant.settings();
    if (settings == null) {
      throw new ApiError(503, "starting", null, "the app is still starting; try again later");
    }
    return new ChatRequest(StrictJson.parse(body), model, settings, fields);
  }

  /** Waits for the next event of an answer. */
  private static Object next(PendingAnswer answer, HttpConnection connection)
      throws IOException, ApiError {
    Object event;
    do {
      if (connection.isGone()) {
        throw new IOException("the client has gone");
      }
      event = answer.next(STEP_MILLIS);
    } while (event == null);
    if (event instanceof ApiError) {
      throw (ApiError) event;
    }
    return event;
  }

  private boolean whole(ChatRequest chat, PendingAnswer answer, HttpConnection connection)
      throws IOException, ApiError {
    JSONArray steps = chat.wantsLogprobs ? new JSONArray() : null;
    Object event = next(answer, connection);
    for (; !(event instanceof JSONObject); event = next(answer, connection)) {
      if (event instanceof TokenStep) { // else a piece: the reply has the whole text
        steps.put(((TokenStep) event).entry);
      }
    }
    send(connection, new Completion(model).whole((JSONObject) event, steps));
    return true;
  }

  private boolean stream(ChatRequest chat, PendingAnswer answer, HttpConnection connection)
      throws IOException, ApiError {
    Completion completion = new Completion(model);
    Object event = next(answer, connection); // if it fails now, the status can tell
    connection.beginStream(fields("text/event-stream"));
    connection.sendPart(completion.first());
    JSONArray steps = chat.wantsLogprobs ? new JSONArray() : null; // whose text is to come
    try {
      for (; !(event instanceof JSONObject); event = next(answer, connection)) {
        if (event instanceof TokenStep) {
          steps.put(((TokenStep) event).entry);
        } else {
          connection.sendPart(completion.piece((String) event, steps));
          steps = chat.wantsLogprobs ? new JSONArray() : null;
        }
      }
    } catch (ApiError e) {
      connection.sendPart(Completion.event(e.toJson()));
      connection.sendPart("");
      return false;
    }
    JSONObject line = (JSONObject) event;
    if (chat.wantsLogprobs && steps.length() > 0) { // of tokens without a text
      connection.sendPart(completion.piece("", steps));
    }
    connection.sendPart(completion.last(line));
    if (chat.wantsUsage) {
      connection.sendPart(completion.usageEvent(line));
    }
    connection.sendPart(Completion.END);
    connection.sendPart("");
    return true;
  }
}
