package org.minicpmv.core;

import android.graphics.Bitmap;
import java.io.IOException;
import java.io.OutputStream;

/** Writes a bitmap in the engine's file format, some rows at a time. */
final class BitmapPixels {
  private static final int STRIP_BYTES = 4 << 20;
  private static final int CHANNELS = 4; // red, green, blue, alpha

  private BitmapPixels() {}

  /** Writes the pixels in sRGB; transparent ones are composited onto white. */
  static void write(Bitmap bitmap, OutputStream target, CancelToken cancel)
      throws IOException, EngineException {
    Bitmap readable = bitmap;
    if (bitmap.getConfig() != Bitmap.Config.ARGB_8888) { // a hardware bitmap has no pixels to read
      readable = bitmap.copy(Bitmap.Config.ARGB_8888, false);
    }
    int width = readable.getWidth();
    int height = readable.getHeight();
    PictureStrips strips = new PictureStrips(width, height, Orientation.UPRIGHT, STRIP_BYTES);
    strips.writeHeader(target);
    for (int i = 0; i < strips.count(); i++) {
      cancel.check();
      PictureStrips.Strip strip = strips.strip(i);
      int[] colours = new int[strip.width * strip.height];
      readable.getPixels(
          colours, 0, strip.width, strip.left, strip.top, strip.width, strip.height);
      strips.write(strip, channels(colours), strip.width * CHANNELS, target);
    }
  }

  /** Returns the bytes of colours in the order that {@link PictureStrips} takes. */
  private static byte[] channels(int[] colours) {
    byte[] bytes = new byte[colours.length * CHANNELS];
    int at = 0;
    for (int colour : colours) {
      bytes[at++] = (byte) (colour >> 16);
      bytes[at++] = (byte) (colour >> 8);
      bytes[at++] = (byte) colour;
      bytes[at++] = (byte) (colour >>> 24);
    }
    return bytes;
  }
}
