package org.minicpmv.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Reads the orientation from a picture's EXIF or, failing that, its XMP, as Pillow does.
 *
 * <p>Damaged metadata is ignored: the picture is shown as stored.
 */
final class Exif {
  static final byte[] NAME = {'E', 'x', 'i', 'f', 0, 0}; // a prefix in many files
  private static final int NONE = -1;
  private static final int HEADER = 8;
  private static final int TIFF = 42;
  private static final int ENTRY = 12; // bytes: tag, type, count, value
  private static final int TAG = 0x0112;
  private static final int SHORT = 3;
  private static final int LONG = 4;
  private static final Pattern XMP = Pattern.compile("tiff:Orientation(?:=\"|>)([0-9])");

  private Exif() {}

  /** Returns the orientation. Either argument may be empty. */
  static Orientation orientation(byte[] exif, byte[] xmp) {
    int number = ofExif(exif);
    return Orientation.of(number == NONE ? ofXmp(xmp) : number);
  }

  private static int ofXmp(byte[] xmp) {
    Matcher matcher = XMP.matcher(new String(xmp, StandardCharsets.ISO_8859_1));
    return matcher.find() ? Integer.parseInt(matcher.group(1)) : NONE;
  }

  /** Reads a TIFF's first directory. */
  private static int ofExif(byte[] exif) {
    int begin = startsWith(exif, NAME) ? NAME.length : 0;
    ByteBuffer tiff = ByteBuffer.wrap(exif, begin, exif.length - begin).slice();
    if (tiff.limit() < HEADER) {
      return NONE;
    }
    boolean isLittle = tiff.get(0) == 'I' && tiff.get(1) == 'I';
    tiff.order(isLittle ? ByteOrder.LITTLE_ENDIAN : ByteOrder.BIG_ENDIAN);
    long directory = tiff.getInt(4) & 0xffffffffL;
    boolean isKnown = isLittle || (tiff.get(0) == 'M' && tiff.get(1) == 'M');
    if (!isKnown || tiff.getShort(2) != TIFF || directory + 2 > tiff.limit()) {
      return NONE;
    }
    int entry = (int) directory + 2;
    for (int i = tiff.getShort((int) directory) & 0xffff; i > 0; i--) {
      if (entry + ENTRY > tiff.limit()) {
        return NONE;
      }
      if ((tiff.getShort(entry) & 0xffff) == TAG) {
        return number(tiff, entry);
      }
      entry += ENTRY;
    }
    return NONE;
  }

  /** Returns the value of an entry; 0, which is not an orientation, if it is not one number. */
  private static int number(ByteBuffer tiff, int entry) {
    int type = tiff.getShort(entry + 2);
    if (tiff.getInt(entry + 4) != 1 || (type != SHORT && type != LONG)) {
      return 0;
    }
    return type == SHORT ? tiff.getShort(entry + 8) : tiff.getInt(entry + 8);
  }

  static boolean startsWith(byte[] bytes, byte[] start) {
    if (bytes.length < start.length) {
      return false;
    }
    for (int i = 0; i < start.length; i++) {
      if (bytes[i] != start[i]) {
        return false;
      }
    }
    return true;
  }
}
