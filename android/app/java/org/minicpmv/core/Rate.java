package org.minicpmv.core;

import java.util.ArrayDeque;
import java.util.Deque;

/** The speed of a long operation in its last seconds. */
final class Rate {
  private static final double WINDOW = 10e9; // nanoseconds
  private static final double LEAST = 1e9; // nanoseconds; a shorter time says little

  private final Deque<long[]> reports = new ArrayDeque<>(); // time and amount, oldest first
  private String stage = "";

  /** Adds a report: at a time in nanoseconds, so much of a stage was done. */
  void add(String newStage, long time, long done) {
    if (!newStage.equals(stage)) {
      reports.clear();
      stage = newStage;
    }
    reports.addLast(new long[] {time, done});
    while (time - reports.getFirst()[0] > WINDOW && reports.size() > 2) {
      reports.removeFirst();
    }
  }

  /** Returns the amount per second; 0 if it is not known yet. */
  double perSecond() {
    if (reports.isEmpty()) {
      return 0;
    }
    long[] first = reports.getFirst();
    long[] last = reports.getLast();
    double time = last[0] - first[0];
    return time < LEAST ? 0 : (last[1] - first[1]) / time * 1e9;
  }
}
