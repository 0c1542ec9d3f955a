package org.minicpmv.core;

/**
 * How to turn a stored picture upright, numbered as in EXIF.
 *
 * <p>An upright pixel's coordinates follow from its stored row and column: the two are swapped if
 * {@link #turned}, and are counted from the right or the bottom. Everything that turns a picture,
 * pixel by pixel or with a matrix, derives from these three flags.
 */
public final class Orientation {
  public static final Orientation UPRIGHT = new Orientation(1);
  public static final Orientation MIRRORED = new Orientation(2);
  public static final Orientation HALF_TURN = new Orientation(3);
  public static final Orientation UPSIDE_DOWN = new Orientation(4); // flipped vertically
  public static final Orientation CLOCKWISE = new Orientation(6); // turn 90 degrees clockwise
  public static final Orientation COUNTER_CLOCKWISE = new Orientation(8);
  private static final int LAST = 8;
  private static final int FIRST_TURNED = 5; // from here on width and height are swapped

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

  /** Returns the orientation with an EXIF number; invalid numbers count as upright. */
  public static Orientation of(int number) {
    return number >= 1 && number <= LAST ? new Orientation(number) : UPRIGHT;
  }

  /** Returns the composition of this orientation and then another. */
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
    throw new IllegalStateException("there are only eight orientations");
  }

  /**
   * Returns a row-major 3 x 3 matrix that transforms (column, row, 1), in the format of graphics
   * libraries. It does not translate the result back to positive coordinates.
   */
  public float[] matrix() {
    float x = fromRight ? -1 : 1;
    float y = fromBottom ? -1 : 1;
    return turned
        ? new float[] {0, x, 0, y, 0, 0, 0, 0, 1}
        : new float[] {x, 0, 0, 0, y, 0, 0, 0, 1};
  }
}
