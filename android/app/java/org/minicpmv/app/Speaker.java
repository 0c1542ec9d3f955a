package org.minicpmv.app;

import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.speech.tts.TextToSpeech;
import android.speech.tts.UtteranceProgressListener;
import android.speech.tts.Voice;
import java.io.IOException;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import org.minicpmv.core.SpeechText;

/**
 * Reads texts aloud with the system's speech, by voices that need no network. Used on the main
 * thread.
 */
final class Speaker {
  // The codes that speech engines use for the languages of the app.
  private static final List<String> CHINESE = Arrays.asList("zh", "zho", "cmn");
  private static final List<String> ENGLISH = Arrays.asList("en", "eng");
  private static final String FAILED = "the text cannot be read aloud";

  private final App app;
  private final Handler main = new Handler(Looper.getMainLooper());
  private Reading current; // null: nothing is being read

  Speaker(App app) {
    this.app = app;
  }

  /** Reads a text in place of the one before; null only ends that. */
  void speak(String text) {
    if (current != null) {
      current.end(null);
    }
    if (text != null && !text.trim().isEmpty()) {
      current = new Reading(text);
      app.assistant().setSpeaking(true);
    }
  }

  /** One text being read. */
  private final class Reading extends UtteranceProgressListener
      implements TextToSpeech.OnInitListener {
    private final String text;
    private final TextToSpeech speech;
    private String last; // id of the last part

    Reading(String text) {
      this.text = text;
      speech = new TextToSpeech(app, this);
    }

    /** The speech is ready; may be called before the constructor ends. */
    @Override
    public void onInit(final int status) {
      main.post(
          new Runnable() {
            @Override
            public void run() {
              begin(status);
            }
          });
    }

    private void begin(int status) {
      if (current != this) {
        return; // ended meanwhile
      }
      List<String> languages = SpeechText.isChinese(text) ? CHINESE : ENGLISH;
      Voice voice = status == TextToSpeech.SUCCESS ? voice(languages) : null;
      if (voice == null || speech.setVoice(voice) != TextToSpeech.SUCCESS) {
        end("the phone has no voice for this language that works without a network");
        return;
      }
      speech.setOnUtteranceProgressListener(this);
      int part = 0;
      for (String piece : SpeechText.split(text, TextToSpeech.getMaxSpeechInputLength())) {
        last = String.valueOf(part++);
        speech.speak(piece, TextToSpeech.QUEUE_ADD, new Bundle(), last);
      }
    }

    /** Returns the best voice on the phone itself; null if there is none for the language. */
    private Voice voice(List<String> languages) {
      Voice best = null;
      Set<Voice> voices = speech.getVoices(); // null if the engine fails
      for (Voice voice : voices == null ? Collections.<Voice>emptySet() : voices) {
        boolean fits =
            languages.contains(voice.getLocale().getLanguage())
                && !voice.isNetworkConnectionRequired()
                && !voice.getFeatures().contains(TextToSpeech.Engine.KEY_FEATURE_NOT_INSTALLED);
        if (fits && (best == null || voice.getQuality() > best.getQuality())) {
          best = voice;
        }
      }
      return best;
    }

    /** Ends the reading; `problem` says why it failed, if it did. */
    private void end(String problem) {
      if (current != this) {
        return;
      }
      current = null;
      speech.stop();
      speech.shutdown();
      app.assistant().setSpeaking(false);
      if (problem != null) {
        app.assistant().reportFileError(FAILED, new IOException(problem));
      }
    }

    private void endLater(final String problem) {
      main.post(
          new Runnable() {
            @Override
            public void run() {
              end(problem);
            }
          });
    }

    @Override
    public void onStart(String id) {}

    @Override
    public void onDone(String id) {
      if (id.equals(last)) {
        endLater(null);
      }
    }

    @Override
    public void onError(String id) {
      endLater("the phone's speech failed");
    }
  }
}
