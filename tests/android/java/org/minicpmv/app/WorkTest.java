package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Notification;
import android.content.ComponentName;
import android.content.Context;
import android.content.ContextWrapper;
import android.content.Intent;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.system.EngineProcess;
import org.robolectric.Robolectric;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.android.controller.ServiceController;
import org.robolectric.shadows.ShadowPowerManager;
import org.robolectric.shadows.ShadowService;

/** The foreground service that keeps an answer going while the app is in the background. */
@RunWith(RobolectricTestRunner.class)
public class WorkTest {
  @Rule public final Phone phone = new Phone();

  private EngineProcess engine;

  @Test
  public void anAnswerIsAForegroundService() throws Exception {
    beginAnswer();
    ServiceController<WorkService> service = started();
    ShadowService shadow = shadowOf(service.get());
    Notification notification = shadow.getLastForegroundNotification();
    String title = notification.extras.getString(Notification.EXTRA_TITLE);
    assertEquals(phone.app().getString(R.string.notification_text), title);
    assertTrue(ShadowPowerManager.getLatestWakeLock().isHeld());
    assertFalse(shadow.isStoppedBySelf());
    endAnswer();
    assertTrue(shadow.isStoppedBySelf());
    service.destroy();
    assertFalse(ShadowPowerManager.getLatestWakeLock().isHeld());
  }

  @Test
  public void aServiceThatStartsTooLateStops() throws Exception {
    beginAnswer();
    Intent start = shadowOf(phone.app()).getNextStartedService();
    endAnswer();
    ServiceController<WorkService> service = Robolectric.buildService(WorkService.class, start);
    service.create().startCommand(0, 1);
    assertTrue(shadowOf(service.get()).isStoppedBySelf());
    // Android demands the notification of every service that was started this way.
    assertTrue(shadowOf(service.get()).getLastForegroundNotification() != null);
    service.destroy();
  }

  @Test
  public void aDeniedServiceDoesNotEndTheAnswer() throws Exception {
    beginAnswer();
    Intent start = shadowOf(phone.app()).getNextStartedService();
    ServiceController<WorkService> service = Robolectric.buildService(WorkService.class, start);
    service.create();
    shadowOf(service.get()).setThrowInStartForeground(new IllegalStateException("not allowed"));
    service.startCommand(0, 1);
    assertTrue(shadowOf(service.get()).isStoppedBySelf());
    endAnswer();
    service.destroy();
  }

  @Test
  public void aStartThatAndroidRefusesIsNoError() {
    Context refusing =
        new ContextWrapper(phone.app()) {
          @Override
          public ComponentName startForegroundService(Intent service) {
            throw new IllegalStateException("startForegroundService() not allowed");
          }
        };
    WorkService.set(refusing, true, true);
    WorkService.set(refusing, false, true);
  }

  @Test
  public void anAppInTheBackgroundStartsNoService() {
    WorkService.set(phone.app(), true, false);
    assertNull(shadowOf(phone.app()).getNextStartedService());
    WorkService.set(phone.app(), false, false);
  }

  /** Asks a question whose answer waits. */
  private void beginAnswer() throws Exception {
    phone.ready();
    shadowOf(phone.app()).clearStartedServices();
    engine = EngineProcess.find();
    engine.signal("STOP");
    phone.say("do", "send", "text", "hello");
    phone.await(
        "start of the service",
        new Phone.Condition() {
          @Override
          public boolean holds() {
            return shadowOf(phone.app()).peekNextStartedService() != null;
          }
        });
  }

  private void endAnswer() throws Exception {
    engine.signal("CONT");
    phone.awaitAnswer();
    phone.awaitModel();
  }

  private ServiceController<WorkService> started() {
    Intent start = shadowOf(phone.app()).getNextStartedService();
    assertEquals(WorkService.class.getName(), start.getComponent().getClassName());
    return Robolectric.buildService(WorkService.class, start).create().startCommand(0, 1);
  }
}
