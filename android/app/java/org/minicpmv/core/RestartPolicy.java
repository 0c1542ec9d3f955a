package org.minicpmv.core;

import java.util.ArrayDeque;
import java.util.Deque;

/** Says whether a dead engine is started again: not if it keeps dying. */
public final class RestartPolicy {
  private static final int DEATHS = 3;
  private static final long WITHIN_MILLIS = 120_000;

  private final Deque<Long> deaths = new ArrayDeque<>();

  /** Notes a death; returns whether to start again by itself. */
  public synchronized boolean died(long nowMillis) {
    deaths.addLast(nowMillis);
    while (nowMillis - deaths.peekFirst() > WITHIN_MILLIS) {
      deaths.removeFirst();
    }
    return deaths.size() < DEATHS;
  }

  /** Begins anew: the user asked for another try. */
  public synchronized void forgive() {
    deaths.clear();
  }
}
