package org.minicpmv.sample;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import android.graphics.Bitmap;
import java.io.File;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.core.Answer;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.MiniCpmV;
import org.minicpmv.system.EngineProcess;
import org.robolectric.RobolectricTestRunner;

/** The library's methods, and what they throw. */
@RunWith(RobolectricTestRunner.class)
public class LibraryTest {
  private static final List<String> QUESTION =
      Collections.singletonList("What colour is the shape?");
  private static final String EXPECTED = System.getProperty("answer");

  @Rule public final HostApp app = new HostApp();

  /** Collects an answer; tests override what they do meanwhile. */
  private static class Collector implements MiniCpmV.Listener {
    final StringBuilder text = new StringBuilder();
    final StringBuilder stages = new StringBuilder();

    @Override
    public void onText(String piece) {
      text.append(piece);
    }

    @Override
    public void onProgress(String stage, long done, long total) {
      if (stages.indexOf(stage) < 0) {
        stages.append(stage).append(' ');
      }
    }
  }

  @Test
  public void itAnswersAsTheEngineDoesOnAPc() throws Exception {
    app.pushFiles();
    try (MiniCpmV model = app.open()) {
      Collector listener = new Collector();
      Answer answer = model.chat(app.picture(), QUESTION, listener);
      assertEquals(EXPECTED, answer.text);
      assertEquals("eos", answer.stop);
      assertEquals(EXPECTED, listener.text.toString());
      assertEquals("encode prefill ", listener.stages.toString());
      Bitmap other = app.picture().copy(Bitmap.Config.RGBA_F16, false); // another kind of memory
      Collector again = new Collector();
      assertEquals(EXPECTED, model.chat(other, QUESTION, again).text);
      assertEquals("prefill ", again.stages.toString()); // the same pixels are not encoded again
      List<String> turns = Arrays.asList(QUESTION.get(0), answer.text, "What shape is it?");
      assertTrue(model.chat(app.picture(), turns, null).text.length() > 0);
      model.setMaxNewTokens(1);
      assertEquals("length", model.chat(null, QUESTION, null).stop);
    }
  }

  @Test
  public void theWeightsAreCheckedOnce() throws Exception {
    app.pushFiles();
    Collector first = new Collector();
    MiniCpmV.open(app.context(), app.files(), first).close();
    assertEquals("verify ", first.stages.toString());
    Collector second = new Collector();
    MiniCpmV.open(app.context(), new File(app.files(), "weights.safetensors"), second).close();
    assertEquals("", second.stages.toString());
  }

  @Test
  public void otherWeightsAreRefused() throws Exception {
    assertEquals("no_weights", refused(app.files()).code());
    File other = new File(app.files(), "other");
    Files.write(other.toPath(), new byte[100]);
    assertEquals("wrong_weights", refused(other).code());
    File own = new File(System.getProperty("bundle"), "weights.safetensors");
    byte[] altered = Files.readAllBytes(own.toPath());
    altered[altered.length - 1] ^= 1;
    Files.write(other.toPath(), altered);
    assertEquals("damaged_weights", refused(other).code());
  }

  @Test
  public void aPackedEngineIsExplained() throws Exception {
    app.pushFiles();
    new File(app.context().getApplicationInfo().nativeLibraryDir, HostApp.ENGINE).delete();
    EngineException error = refused(app.files());
    assertEquals("no_engine", error.code());
    assertTrue(error.getMessage(), error.getMessage().contains("useLegacyPackaging = true"));
  }

  @Test
  public void aPictureIsCancelled() throws Exception {
    app.pushFiles();
    try (MiniCpmV model = app.open()) {
      Collector cancelling =
          new Collector() {
            @Override
            public void onProgress(String stage, long done, long total) {
              model.cancel(); // takes effect even if the picture is finished meanwhile
            }
          };
      EngineException error =
          assertThrows(
              EngineException.class, () -> model.chat(app.picture(), QUESTION, cancelling));
      assertEquals("cancelled", error.code());
      assertEquals(EXPECTED, model.chat(app.picture(), QUESTION, null).text);
    }
  }

  @Test
  public void aCancelledAnswerIsWhatThereIs() throws Exception {
    app.pushFiles();
    try (MiniCpmV model = app.open()) {
      Collector listener =
          new Collector() {
            @Override
            public void onText(String piece) {
              super.onText(piece);
              model.cancel();
            }
          };
      Answer answer = model.chat(app.picture(), QUESTION, listener);
      assertTrue(answer.text, EXPECTED.startsWith(answer.text)); // it may be finished meanwhile
      assertEquals(answer.text, listener.text.toString());
      assertEquals(EXPECTED, model.chat(app.picture(), QUESTION, null).text);
    }
  }

  @Test
  public void badTurnsAreRefusedAndTheNextQuestionWorks() throws Exception {
    app.pushFiles();
    try (MiniCpmV model = app.open()) {
      List<String> none = Collections.emptyList();
      for (List<String> turns : Arrays.asList(none, Arrays.asList("a", "b"))) {
        EngineException error =
            assertThrows(EngineException.class, () -> model.chat(null, turns, null));
        assertEquals("invalid_request", error.code());
      }
      assertThrows(IllegalArgumentException.class, () -> model.setMaxNewTokens(0));
      assertEquals(EXPECTED, model.chat(app.picture(), QUESTION, null).text);
    }
  }

  @Test
  public void aDeadEngineIsToldAndStartedAgain() throws Exception {
    app.pushFiles();
    try (MiniCpmV model = app.open()) {
      Collector killing =
          new Collector() {
            private boolean killed;

            @Override
            public void onProgress(String stage, long done, long total) {
              try {
                if (!killed) { // what it had said before still arrives
                  killed = true;
                  EngineProcess.find().signal("KILL");
                }
              } catch (Exception e) {
                throw new AssertionError(e);
              }
            }
          };
      EngineException error =
          assertThrows(
              EngineException.class, () -> model.chat(app.picture(), QUESTION, killing));
      assertEquals("engine_killed", error.code());
      assertEquals(EXPECTED, model.chat(app.picture(), QUESTION, null).text);
    }
  }

  @Test
  public void closingEndsAnAnswer() throws Exception {
    app.pushFiles();
    MiniCpmV model = app.open();
    Collector closing =
        new Collector() {
          @Override
          public void onProgress(String stage, long done, long total) {
            model.close();
          }
        };
    EngineException during =
        assertThrows(EngineException.class, () -> model.chat(app.picture(), QUESTION, closing));
    assertTrue(during.code(), during.isEngineLost() || during.code().equals("cancelled"));
    EngineException after =
        assertThrows(EngineException.class, () -> model.chat(null, QUESTION, null));
    assertTrue(after.getMessage(), after.getMessage().contains("closed"));
    assertTrue(EngineProcess.isNone());
  }

  private EngineException refused(File weights) {
    return assertThrows(
        EngineException.class, () -> MiniCpmV.open(app.context(), weights, null));
  }
}
