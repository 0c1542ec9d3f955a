package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.robolectric.Shadows.shadowOf;

import android.app.Notification;
import android.content.Intent;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.ServerSocket;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.util.Scanner;
import java.util.concurrent.atomic.AtomicReference;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.android.controller.ServiceController;
import org.robolectric.shadows.ShadowPowerManager;

/** The variant with a server for other apps: its service, its notification, and an answer. */
@RunWith(RobolectricTestRunner.class)
public class ApiTest {
  private static final String QUESTION =
      "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"temperature\": 0,"
          + " \"logprobs\": true, \"top_logprobs\": 2}";

  @Rule public final Phone phone = new Phone();

  @Test
  public void theServerIsAForegroundService() throws Exception {
    phone.ready();
    shadowOf(phone.app()).clearStartedServices();
    JSONObject api = switchOn();
    ServiceController<ApiService> service = started();
    Notification shown = shadowOf(service.get()).getLastForegroundNotification();
    String title = shown.extras.getString(Notification.EXTRA_TITLE);
    assertEquals(phone.app().getString(R.string.api_text), title);
    assertEquals(401, status(api, "wrong"));
    assertEquals(200, status(api, api.getString("token")));
    phone.say("do", "api", "on", false);
    awaitStopped(service);
    service.destroy();
  }

  @Test
  public void theNotificationSwitchesItOff() throws Exception {
    phone.ready();
    shadowOf(phone.app()).clearStartedServices();
    switchOn();
    ServiceController<ApiService> service = started();
    Notification shown = shadowOf(service.get()).getLastForegroundNotification();
    Intent off = shadowOf(shown.actions[0].actionIntent).getSavedIntent();
    service.withIntent(off).startCommand(0, 2);
    awaitStopped(service);
    service.destroy();
    assertFalse(state().getBoolean("on"));
  }

  @Test
  public void theModelAnswersAnotherApp() throws Exception {
    phone.ready();
    shadowOf(phone.app()).clearStartedServices();
    final JSONObject api = switchOn();
    ServiceController<ApiService> service = started();
    final AtomicReference<String> answer = new AtomicReference<>();
    Thread other =
        new Thread(
            new Runnable() {
              @Override
              public void run() {
                answer.set(ask(api));
              }
            });
    other.start();
    phone.await(
        "answer",
        new Phone.Condition() {
          @Override
          public boolean holds() {
            return answer.get() != null;
          }
        });
    JSONObject choice = new JSONObject(answer.get()).getJSONArray("choices").getJSONObject(0);
    String text = choice.getJSONObject("message").getString("content");
    assertFalse(text.isEmpty());
    assertEquals(text, spelled(choice.getJSONObject("logprobs").getJSONArray("content")).trim());
    phone.await(
        "count",
        new Phone.Condition() {
          @Override
          public boolean holds() throws Exception {
            return phone.await("state").getJSONObject("api").getInt("answered") == 1;
          }
        });
    assertFalse(ShadowPowerManager.getLatestWakeLock().isHeld());
    phone.say("do", "api", "on", false);
    awaitStopped(service);
    service.destroy();
  }

  @Test
  public void aPortThatIsTakenIsNamed() throws Exception {
    phone.ready();
    try (ServerSocket taken = new ServerSocket(0)) {
      phone.say("do", "api", "on", true, "port", taken.getLocalPort());
      JSONObject api = await("problem");
      assertEquals("port_taken", api.getJSONObject("problem").getString("code"));
      assertFalse(api.has("address"));
    }
  }

  /** Returns the text of an answer's tokens, each of which is the likeliest one. */
  private static String spelled(JSONArray steps) throws Exception {
    StringBuilder text = new StringBuilder();
    for (int i = 0; i < steps.length(); i++) {
      JSONObject step = steps.getJSONObject(i);
      JSONArray top = step.getJSONArray("top_logprobs");
      assertEquals(2, top.length());
      assertEquals(top.getJSONObject(0).getString("token"), step.getString("token"));
      text.append(step.isNull("bytes") ? "" : step.getString("token"));
    }
    return text.toString();
  }

  /** Switches the server on, on a port that is free. */
  private JSONObject switchOn() throws Exception {
    int port;
    try (ServerSocket free = new ServerSocket(0)) {
      port = free.getLocalPort();
    }
    phone.say("do", "api", "on", true, "port", port);
    return await("address");
  }

  /** Waits until the state of the server has a field; returns it. */
  private JSONObject await(String field) throws Exception {
    while (true) {
      JSONObject api = phone.await("state").getJSONObject("api");
      if (api.has(field)) {
        return api;
      }
    }
  }

  private JSONObject state() throws Exception {
    phone.say("do", "hello");
    while (true) {
      JSONObject api = phone.await("state").getJSONObject("api");
      if (!api.has("address")) {
        return api;
      }
    }
  }

  private ServiceController<ApiService> started() throws Exception {
    final AtomicReference<Intent> start = new AtomicReference<>();
    phone.await(
        "start of the service",
        new Phone.Condition() {
          @Override
          public boolean holds() {
            Intent next = shadowOf(phone.app()).getNextStartedService();
            boolean isApi =
                next != null
                    && ApiService.class.getName().equals(next.getComponent().getClassName());
            start.set(isApi ? next : null);
            return isApi;
          }
        });
    assertNotNull(start.get());
    ServiceController<ApiService> service =
        Robolectric.buildService(ApiService.class, start.get()).create().startCommand(0, 1);
    assertFalse(shadowOf(service.get()).isStoppedBySelf());
    return service;
  }

  private void awaitStopped(final ServiceController<ApiService> service) throws Exception {
    phone.await(
        "end of the service",
        new Phone.Condition() {
          @Override
          public boolean holds() {
            return shadowOf(service.get()).isStoppedBySelf();
          }
        });
  }

  private static HttpURLConnection connect(JSONObject api, String path, String token)
      throws Exception {
    URL url = new URL(api.getString("address") + path);
    HttpURLConnection connection = (HttpURLConnection) url.openConnection();
    connection.setRequestProperty("Authorization", "Bearer " + token);
    return connection;
  }

  private static int status(JSONObject api, String token) throws Exception {
    return connect(api, "/models", token).getResponseCode();
  }

  private static String ask(JSONObject api) {
    try {
      HttpURLConnection connection =
          connect(api, "/chat/completions", api.getString("token"));
      connection.setRequestProperty("Content-Type", "application/json");
      connection.setDoOutput(true);
      try (OutputStream body = connection.getOutputStream()) {
        body.write(QUESTION.getBytes(StandardCharsets.UTF_8));
      }
      return new Scanner(connection.getInputStream(), "UTF-8").useDelimiter("\\A").next();
    } catch (Exception e) {
      throw new IllegalStateException(e);
    }
  }
}
