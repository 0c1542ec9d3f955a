package org.minicpmv.core;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;

/**
 * Cuts a picture of any size into strips that fit in memory, and turns them upright.
 *
 * <p>A strip is a rectangle of the stored picture that maps to whole rows of the upright one, so
 * that the engine's pixel file (runtime/engine/picture_file.h) is written sequentially.
 */
public final class PictureStrips {
  public static final long MAX_PIXELS = 200_000_000; // no phone camera takes more
  private static final String MAGIC = "MCPMVRGB";
  private static final int VERSION = 1;
  private static final int HEADER = 24;
  private static final int SOURCE_BYTES = 4; // a pixel: red, green, blue, alpha
  private static final int WHITE = 255;
  private static final int TARGET_BYTES = 3;
  private static final int ALIGNMENT = 16; // rows; JPEG decodes whole blocks

  /** A rectangle of the stored picture, in pixels. */
  public static final class Strip {
    public final int left;
    public final int top;
    public final int width;
    public final int height;

    Strip(int left, int top, int width, int height) {
      this.left = left;
      this.top = top;
      this.width = width;
      this.height = height;
    }
  }

  private final int width;
  private final int height;
  private final Orientation orientation;
  private final int rows;

  /**
   * @param width of the stored picture
   * @param height of the stored picture
   * @param orientation of the stored picture
   * @param stripBytes how much memory a strip may take
   * @throws IOException if it has no pixels, or too many
   */
  public PictureStrips(int width, int height, Orientation orientation, int stripBytes)
      throws IOException {
    if (width < 1 || height < 1) {
      throw new IOException("not a picture that this phone can decode");
    }
    if ((long) width * height > MAX_PIXELS) {
      throw new IOException(
          width + " x " + height + " is larger than the limit of 200,000,000 pixels");
    }
    this.width = width;
    this.height = height;
    this.orientation = orientation;
    long fitting = stripBytes / ((long) uprightWidth() * SOURCE_BYTES);
    long aligned = fitting / ALIGNMENT * ALIGNMENT;
    this.rows = (int) Math.min(uprightHeight(), Math.max(aligned, ALIGNMENT));
  }

  public int uprightWidth() {
    return orientation.turned ? height : width;
  }

  public int uprightHeight() {
    return orientation.turned ? width : height;
  }

  public int count() {
    return (uprightHeight() + rows - 1) / rows;
  }

  /** Returns the rectangle to decode for a strip, counted from the top of the upright picture. */
  public Strip strip(int index) {
    int first = index * rows;
    int length = Math.min(rows, uprightHeight() - first);
    // Rows of the upright picture are rows or columns of the stored one, from either end.
    int start = orientation.fromBottom ? uprightHeight() - first - length : first;
    return orientation.turned
        ? new Strip(start, 0, length, height)
        : new Strip(0, start, width, length);
  }

  /** Writes the file's header. */
  public void writeHeader(OutputStream target) throws IOException {
    ByteBuffer header = ByteBuffer.allocate(HEADER).order(ByteOrder.LITTLE_ENDIAN);
    header.put(MAGIC.getBytes(StandardCharsets.US_ASCII));
    header.putInt(VERSION).putInt(uprightWidth()).putInt(uprightHeight()).putInt(0);
    target.write(header.array());
  }

  /**
   * Writes a strip as upright RGB rows; transparent pixels are composited onto white.
   *
   * @param strip a rectangle of this picture
   * @param pixels its rows of RGBA, not premultiplied
   * @param rowBytes offset from one row to the next
   */
  public void write(Strip strip, byte[] pixels, int rowBytes, OutputStream target)
      throws IOException {
    int wide = orientation.turned ? strip.height : strip.width;
    int high = orientation.turned ? strip.width : strip.height;
    byte[] row = new byte[wide * TARGET_BYTES];
    for (int y = 0; y < high; y++) {
      for (int x = 0; x < wide; x++) {
        int from = sourceOffset(strip, x, y, rowBytes);
        int alpha = pixels[from + TARGET_BYTES] & 0xff;
        for (int i = 0; i < TARGET_BYTES; i++) {
          row[TARGET_BYTES * x + i] = onWhite(pixels[from + i], alpha);
        }
      }
      target.write(row);
    }
  }

  /** Composites a level onto white, rounded, as runtime/inputs/picture_modes.py does. */
  private static byte onWhite(byte level, int alpha) {
    if (alpha == WHITE) {
      return level;
    }
    return (byte) (((level & 0xff) * alpha + WHITE * (WHITE - alpha) + WHITE / 2) / WHITE);
  }

  /** Returns the offset, in the stored strip, of a pixel of the upright strip. */
  private int sourceOffset(Strip strip, int x, int y, int rowBytes) {
    int wide = orientation.turned ? strip.height : strip.width;
    int high = orientation.turned ? strip.width : strip.height;
    int across = orientation.fromRight ? wide - 1 - x : x;
    int down = orientation.fromBottom ? high - 1 - y : y;
    int row = orientation.turned ? across : down;
    int column = orientation.turned ? down : across;
    return row * rowBytes + column * SOURCE_BYTES;
  }
}
