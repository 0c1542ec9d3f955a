package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.content.ComponentName;
import android.content.Intent;
import android.content.IntentFilter;
import android.speech.RecognizerIntent;
import android.speech.tts.TextToSpeech;
import android.speech.tts.Voice;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Locale;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.shadows.ShadowActivity;
import org.robolectric.shadows.ShadowPackageManager;
import org.robolectric.shadows.ShadowTextToSpeech;

/** Reading aloud and dictation, by the system's own parts. */
@RunWith(RobolectricTestRunner.class)
public class SpeechTest {
  @Rule public final Phone phone = new Phone();

  @Test
  public void onlyWhatThePhoneHasIsOffered() throws Exception {
    phone.open();
    String can = phone.awaitAbilities();
    assertFalse(can, can.contains("speak") || can.contains("dictate"));
  }

  @Test
  public void anAnswerIsReadByTheBestVoiceOnThePhone() throws Exception {
    open();
    addVoice("small", Locale.US, Voice.QUALITY_LOW, false);
    addVoice("good", Locale.UK, Voice.QUALITY_HIGH, false);
    addVoice("online", Locale.US, Voice.QUALITY_VERY_HIGH, true);
    addVoice("absent", Locale.US, Voice.QUALITY_VERY_HIGH, false, "notInstalled");
    addVoice("chinese", Locale.CHINA, Voice.QUALITY_VERY_HIGH, false);
    phone.say("do", "speak", "text", "It is red.");
    awaitSpeaking(true);
    start();
    assertEquals("It is red.", speech().getLastSpokenText());
    assertEquals("good", speech().getCurrentVoice().getName());
    awaitSpeaking(false);
    assertTrue(speech().isShutdown());
    phone.say("do", "speak", "text", "这是红色。");
    awaitSpeaking(true);
    start();
    assertEquals("chinese", speech().getCurrentVoice().getName());
    awaitSpeaking(false);
  }

  @Test
  public void readingCanBeStopped() throws Exception {
    open();
    addVoice("voice", Locale.US, Voice.QUALITY_HIGH, false);
    phone.say("do", "speak", "text", "one");
    awaitSpeaking(true);
    phone.say("do", "speak");
    awaitSpeaking(false);
    ShadowTextToSpeech stopped = speech();
    assertTrue(stopped.isStopped() && stopped.isShutdown());
    stopped.getOnInitListener().onInit(TextToSpeech.SUCCESS); // too late
    phone.idle();
    assertEquals(null, stopped.getLastSpokenText());
  }

  @Test
  public void aPhoneWithoutAVoiceSaysSo() throws Exception {
    open();
    addVoice("online", Locale.US, Voice.QUALITY_VERY_HIGH, true);
    for (int status : new int[] {TextToSpeech.SUCCESS, TextToSpeech.ERROR}) {
      phone.say("do", "speak", "text", "one");
      awaitSpeaking(true);
      speech().getOnInitListener().onInit(status);
      JSONObject error = phone.await("error");
      assertEquals(
          "the text cannot be read aloud: the phone has no voice for this language that works"
              + " without a network",
          error.getString("message"));
    }
  }

  @Test
  public void whatIsDictatedGoesIntoTheQuestion() throws Exception {
    open();
    dictate(Activity.RESULT_OK, texts("What is this"));
    assertEquals("What is this", phone.await("dictated").getString("text"));
    dictate(Activity.RESULT_CANCELED, null);
    dictate(Activity.RESULT_OK, null);
    dictate(Activity.RESULT_OK, new Intent());
    dictate(Activity.RESULT_OK, new Intent().putExtra(RecognizerIntent.EXTRA_RESULTS, 5));
    dictate(Activity.RESULT_OK, texts());
    dictate(Activity.RESULT_OK, texts((String) null));
    dictate(Activity.RESULT_OK, texts("next"));
    assertEquals("next", phone.await("dictated").getString("text"));
  }

  private static Intent texts(String... texts) {
    return new Intent()
        .putStringArrayListExtra(
            RecognizerIntent.EXTRA_RESULTS, new ArrayList<>(Arrays.asList(texts)));
  }

  /** Opens the app on a phone that can speak and recognize. */
  private void open() throws Exception {
    ShadowPackageManager packages = shadowOf(phone.app().getPackageManager());
    ComponentName speech = new ComponentName("org.example.speech", "Speech");
    packages.addServiceIfNotPresent(speech);
    packages.addIntentFilterForService(
        speech, new IntentFilter(TextToSpeech.Engine.INTENT_ACTION_TTS_SERVICE));
    ComponentName recognizer = new ComponentName("org.example.speech", "Recognizer");
    packages.addActivityIfNotPresent(recognizer);
    IntentFilter filter = new IntentFilter(RecognizerIntent.ACTION_RECOGNIZE_SPEECH);
    filter.addCategory(Intent.CATEGORY_DEFAULT);
    packages.addIntentFilterForActivity(recognizer, filter);
    phone.open();
    String can = phone.awaitAbilities();
    assertTrue(can, can.contains("speak") && can.contains("dictate"));
  }

  private static void addVoice(
      String name, Locale locale, int quality, boolean isOnline, String... features) {
    ShadowTextToSpeech.addVoice(
        new Voice(
            name, locale, quality, Voice.LATENCY_NORMAL, isOnline,
            new HashSet<>(Arrays.asList(features))));
  }

  /** Plays the speech engine's start. */
  private void start() {
    speech().getOnInitListener().onInit(TextToSpeech.SUCCESS);
    phone.idle();
  }

  private static ShadowTextToSpeech speech() {
    return shadowOf(ShadowTextToSpeech.getLastTextToSpeechInstance());
  }

  private void awaitSpeaking(boolean isSpeaking) throws Exception {
    while (phone.await("state").getBoolean("speaking") != isSpeaking) {
      continue;
    }
  }

  private void dictate(int result, Intent data) {
    phone.say("do", "dictate");
    phone.idle();
    ShadowActivity.IntentForResult asked =
        shadowOf(phone.activity()).getNextStartedActivityForResult();
    assertEquals(RecognizerIntent.ACTION_RECOGNIZE_SPEECH, asked.intent.getAction());
    assertTrue(asked.intent.getBooleanExtra(RecognizerIntent.EXTRA_PREFER_OFFLINE, false));
    shadowOf(phone.activity()).receiveResult(asked.intent, result, data);
    phone.idle();
  }
}
