package org.minicpmv.core;

import java.util.ArrayDeque;
import java.util.Deque;

/** Decides whether to restart a process that died: not if it keeps dying. */
public final class RestartPolicy {
  private static final int DEATHS = 3;
  private static final long WITHIN_MILLIS = 120_000;

  private final Deque<Long> deaths = new ArrayDeque<>();

  /** Records a death; returns whether to restart automatically. */
  public synchronized boolean died(long nowMillis) {
    deaths.addLast(nowMillis);
    while (nowMillis - deaths.peekFirst() > WITHIN_MILLIS) {
      deaths.removeFirst();
    }
    return deaths.size() < DEATHS;
  }

  /** Forgets past deaths: the user asked for a retry. */
  public synchronized void reset() {
    deaths.clear();
  }
}
