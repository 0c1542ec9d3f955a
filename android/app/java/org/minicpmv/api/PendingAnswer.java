package org.minicpmv.api;

import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.json.JSONObject;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.ServedChat;

/** An answer under way: tokens and pieces of text, then the engine's reply or an error. */
final class PendingAnswer extends ServedChat {
  private final AnswerQueue queue;
  private final BlockingQueue<Object> events = new LinkedBlockingQueue<>();

  PendingAnswer(ChatRequest request, AnswerQueue queue) {
    super(
        request.conversation.messages,
        request.conversation.picture,
        request.conversation.overviewOnly,
        request.options);
    this.queue = queue;
  }

  /** Waits for a TokenStep, String, JSONObject or ApiError; null if none has come. */
  Object next(long millis) {
    try {
      return events.poll(millis, TimeUnit.MILLISECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return ApiError.ending();
    }
  }

  @Override
  public void onText(String text) {
    events.add(text);
  }

  @Override
  public void onToken(JSONObject line) {
    events.add(new TokenStep(line));
  }

  @Override
  public void onDone(JSONObject line) {
    if (line.optString("stop").equals("cancelled")) {
      onFailed(new EngineException(EngineException.CANCELLED, "cancelled"));
    } else {
      queue.leave(this);
      events.add(line);
    }
  }

  @Override
  public void onFailed(EngineException e) {
    queue.leave(this);
    events.add(queue.isEnding() ? ApiError.ending() : ApiError.of(e));
  }
}
