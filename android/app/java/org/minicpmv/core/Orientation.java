package org.minicpmv.core;

/**
 * How a stored picture becomes the upright one, numbered as EXIF does.
 *
 * <p>A pixel's place when it is seen comes from its row and column as stored: they change places if
 * it {@link #turned}, and are counted from the right or the bottom. All that turns a picture, be it
 * pixel by pixel or with a matrix, follows from these three.
 */
public final class Orientation {
  public static final Orientation UPRIGHT = new Orientation(1);
  public static final Orientation MIRRORED = new Orientation(2);
  public static final Orientation HALF_TURN = new Orientation(3);
  public static final Orientation UPSIDE_DOWN = new Orientation(4); // in a mirror
  public static final Orientation CLOCKWISE = new Orientation(6); // a quarter, to be upright
  public static final Orientation COUNTER_CLOCKWISE = new Orientation(8);
  private static final int LAST = 8;
  private static final int FIRST_TURNED = 5; // from here on width and height change places

  public final int number;
  public final boolean turned;
  public final boolean fromRight;
  public final boolean fromBottom;

  private Orientation(int number) {
    this.number = number;
    turned = number >= FIRST_TURNED;
    fromRight = number == 2 || number == 3 || number == 6 || number == 7;
    fromBottom = number == 3 || number == 4 || number == 7 || number == 8;
  }

  /** Returns the one of a number; whatever is none of EXIF's counts as upright. */
  public static Orientation of(int number) {
    return number >= 1 && number <= LAST ? new Orientation(number) : UPRIGHT;
  }

  /** Returns what this and then another do. */
  public Orientation then(Orientation next) {
    boolean right = next.fromRight ^ (next.turned ? fromBottom : fromRight);
    boolean bottom = next.fromBottom ^ (next.turned ? fromRight : fromBottom);
    for (int i = 1; i <= LAST; i++) {
      Orientation both = new Orientation(i);
      boolean isTurned = turned ^ next.turned;
      if (both.turned == isTurned && both.fromRight == right && both.fromBottom == bottom) {
        return both;
      }
    }
    throw new IllegalStateException("eight are all that there are");
  }

  /**
   * Returns a matrix of three rows that turns places (column, row, 1), as graphics libraries take
   * it. It does not move what it turned back to the right of and below the origin.
   */
  public float[] matrix() {
    float x = fromRight ? -1 : 1;
    float y = fromBottom ? -1 : 1;
    return turned
        ? new float[] {0, x, 0, y, 0, 0, 0, 0, 1}
        : new float[] {x, 0, 0, 0, y, 0, 0, 0, 1};
  }
}
