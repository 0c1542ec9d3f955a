package org.minicpmv.sample;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.os.Looper;
import android.view.ViewGroup;
import android.widget.TextView;
import java.util.concurrent.TimeUnit;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.android.controller.ActivityController;

/** The sample shows one picture and streams one answer, or says what is missing. */
@RunWith(RobolectricTestRunner.class)
public class SampleTest {
  private static final long SECONDS = 120; // until a wait fails

  @Rule public final HostApp app = new HostApp();

  @Test
  public void itStreamsTheAnswer() throws Exception {
    app.pushFiles();
    assertEquals(System.getProperty("answer"), shown(System.getProperty("answer").length()));
  }

  @Test
  public void itSaysThatTheWeightsAreMissing() throws Exception {
    assertTrue(shown(1).startsWith("no_weights: "));
  }

  /** Opens the sample and returns its text once that has a length. */
  private static String shown(int length) throws Exception {
    ActivityController<SampleActivity> screen = Robolectric.buildActivity(SampleActivity.class);
    screen.setup();
    ViewGroup content = screen.get().findViewById(android.R.id.content);
    TextView text = (TextView) ((ViewGroup) content.getChildAt(0)).getChildAt(1);
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(SECONDS);
    while (text.length() < length && System.nanoTime() < end) {
      shadowOf(Looper.getMainLooper()).idle();
      Thread.sleep(5);
    }
    String shown = text.getText().toString();
    screen.destroy();
    return shown;
  }
}
