package org.minicpmv.app;

import android.content.Intent;
import android.speech.RecognizerIntent;
import java.util.List;

/** Dictation by the system's recognizer, which has its own screen and its own permission. */
final class Dictation {
  private static final int LIMIT = 20_000; // characters, as many as a question may have

  private Dictation() {}

  /** Returns the intent that lets the user speak a language: a code such as `en`. */
  static Intent intent(String language) {
    return new Intent(RecognizerIntent.ACTION_RECOGNIZE_SPEECH)
        .putExtra(
            RecognizerIntent.EXTRA_LANGUAGE_MODEL, RecognizerIntent.LANGUAGE_MODEL_FREE_FORM)
        .putExtra(RecognizerIntent.EXTRA_LANGUAGE, language)
        .putExtra(RecognizerIntent.EXTRA_PREFER_OFFLINE, true)
        .putExtra(RecognizerIntent.EXTRA_MAX_RESULTS, 1);
  }

  /** Returns what was recognized; empty if the recognizer sent nothing. */
  static String text(Intent result) {
    if (result == null) {
      return "";
    }
    try {
      List<String> texts = result.getStringArrayListExtra(RecognizerIntent.EXTRA_RESULTS);
      String text = texts == null || texts.isEmpty() ? null : texts.get(0);
      return text == null ? "" : text.substring(0, Math.min(text.length(), LIMIT));
    } catch (RuntimeException e) { // another app's result can be anything
      return "";
    }
  }
}
