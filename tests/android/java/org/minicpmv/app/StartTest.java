package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.core.PageFiles;
import org.robolectric.RobolectricTestRunner;

/** The first start, and answers of the real engine. */
@RunWith(RobolectricTestRunner.class)
public class StartTest {
  @Rule public final Phone phone = new Phone();

  @Test
  public void withoutWeightsThePageSaysWhereTheyGo() throws Exception {
    phone.open();
    assertEquals(PageFiles.START, phone.page().getLastLoadedUrl());
    assertEquals("no_weights", phone.awaitProblem().getString("code"));
  }

  @Test
  public void pushedWeightsAreFoundOnRetry() throws Exception {
    phone.open();
    phone.awaitProblem();
    phone.pushWeights().say("do", "retry");
    JSONObject state = phone.awaitModel();
    assertFalse(state.has("problem"));
    assertTrue(state.getJSONObject("model").getInt("image_tokens") > 0);
  }

  @Test
  public void theOrdinaryAppHasNoServer() throws Exception {
    phone.open();
    assertFalse(phone.awaitAbilities().contains("api"));
  }

  @Test
  public void theModelAnswers() throws Exception {
    phone.ready();
    phone.say("do", "send", "text", "hello");
    JSONObject answer = phone.awaitAnswer().getJSONArray("turns").getJSONObject(1);
    assertEquals("assistant", answer.getString("role"));
    assertEquals("eos", answer.getString("stop"));
    assertFalse(answer.getString("text").isEmpty());
  }
}
