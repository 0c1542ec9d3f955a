package org.minicpmv.core;

import org.jetbrains.annotations.NotNull;

/** What a model answered. */
public final class Answer {
  /** The whole answer: all pieces that the listener received. */
  @NotNull public final String text;

  /** Why it ended: `eos` (the model ended it), `length` or `cancelled`. */
  @NotNull public final String stop;

  Answer(String text, String stop) {
    this.text = text;
    this.stop = stop;
  }
}
