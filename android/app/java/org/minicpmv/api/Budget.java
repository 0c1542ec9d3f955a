package org.minicpmv.api;

/** A number of bytes that several requests share. */
final class Budget {
  private final Budget whole; // null: this is the whole
  private final long limit;
  private long taken;

  /** @param limit bytes */
  Budget(long limit) {
    this.whole = null;
    this.limit = limit;
  }

  /** A request's part of the whole. */
  Budget(Budget whole) {
    this.whole = whole;
    this.limit = Long.MAX_VALUE;
  }

  synchronized void take(long bytes) throws ApiError {
    if (whole != null) {
      whole.take(bytes);
    } else if (taken + bytes > limit) {
      throw ApiError.queueFull("too much data is being received at once");
    }
    taken += bytes;
  }

  /** Gives all back. */
  synchronized void giveBack() {
    whole.giveBack(taken);
    taken = 0;
  }

  private synchronized void giveBack(long bytes) {
    taken -= bytes;
  }
}
