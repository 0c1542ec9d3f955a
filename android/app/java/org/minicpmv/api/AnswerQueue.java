package org.minicpmv.api;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.Set;
import org.minicpmv.core.Assistant;

/** The requests that the model answers one after the other; a limited number of them wait. */
final class AnswerQueue {
  private final Assistant assistant;
  private final int limit;
  private final Set<PendingAnswer> pending = new HashSet<>();
  private int admitted; // requests that are waiting or being answered, read completely
  private boolean isEnding;

  /** @param waiting how many requests may wait besides the one in progress */
  AnswerQueue(Assistant assistant, int waiting) {
    this.assistant = assistant;
    limit = 1 + waiting;
  }

  synchronized int admitted() {
    return admitted;
  }

  synchronized boolean isEnding() {
    return isEnding;
  }

  /** Takes a place. */
  synchronized void enter() throws ApiError {
    if (isEnding) {
      throw ApiError.ending();
    }
    if (admitted >= limit) {
      throw ApiError.queueFull(limit + " requests are already waiting or in progress");
    }
    admitted++;
  }

  /** Gives a place back that no answer has. */
  synchronized void leave() {
    admitted--;
  }

  /** Queues a request, which has a place. */
  PendingAnswer begin(ChatRequest request) throws ApiError {
    PendingAnswer answer = new PendingAnswer(request, this);
    synchronized (this) {
      if (isEnding) {
        throw ApiError.ending();
      }
      pending.add(answer);
    }
    assistant.serve(answer);
    return answer;
  }

  /** Gives an answer's place back. */
  synchronized void leave(PendingAnswer answer) {
    if (pending.remove(answer)) {
      admitted--;
    }
  }

  void cancel(PendingAnswer answer) {
    assistant.cancel(answer);
  }

  /** Cancels all requests, and admits no more. */
  void end() {
    ArrayList<PendingAnswer> all;
    synchronized (this) {
      isEnding = true;
      all = new ArrayList<>(pending);
    }
    for (PendingAnswer answer : all) {
      assistant.cancel(answer);
    }
  }
}
