package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;

/**
 * What a picture's file says of itself before it is decoded: its format, and how it is turned.
 *
 * <p>The names of formats, and what is refused, are those of runtime/web/pictures.py, but for what
 * only one of the two hosts can decode. Files come from anywhere: nothing in them is believed.
 */
public final class PictureFile {
  private static final String ADVICE = "; choose a JPEG, PNG or WebP";
  private static final int START = 16; // bytes that tell the format
  private static final List<String> HEIC =
      Arrays.asList("heic", "heix", "hevc", "heim", "heis", "mif1", "msf1");
  private static final List<String> AVIF = Arrays.asList("avif", "avis");

  /** What the bytes are, whatever the file's name says. */
  public enum Format {
    JPEG,
    PNG,
    WEBP,
    BMP,
    HEIC,
    AVIF,
    GIF,
    TIFF,
    UNKNOWN
  }

  public final File file;
  public final Format format;
  private final Orientation orientation;
  private final Heif heif; // null: it is none, or does not say

  private PictureFile(File file, Format format, Orientation orientation, Heif heif) {
    this.file = file;
    this.format = format;
    this.orientation = orientation;
    this.heif = heif;
  }

  /**
   * Looks at a file.
   *
   * @param decodesHeic whether this system does; Android does from version 9 on
   * @throws IOException a format that is not taken: says so, and what to choose
   */
  public static PictureFile open(File file, boolean decodesHeic) throws IOException {
    try (RandomAccessFile bytes = new RandomAccessFile(file, "r")) {
      byte[] start = new byte[(int) Math.min(START, bytes.length())];
      bytes.readFully(start);
      Format format = format(start);
      PictureMetadata metadata = new PictureMetadata(bytes);
      switch (format) {
        case JPEG:
          return new PictureFile(file, format, metadata.ofJpeg(), null);
        case PNG:
          return new PictureFile(file, format, metadata.ofPng(), null);
        case WEBP:
          return new PictureFile(file, format, metadata.ofWebp(), null);
        case BMP:
          return new PictureFile(file, format, Orientation.UPRIGHT, null);
        case HEIC:
          if (!decodesHeic) {
            throw new IOException("HEIC pictures cannot be decoded here" + ADVICE);
          }
          return new PictureFile(file, format, Orientation.UPRIGHT, metadata.ofHeic());
        case UNKNOWN:
          throw new IOException("this is not a picture that can be decoded" + ADVICE);
        default:
          throw new IOException(format + " pictures are not taken" + ADVICE);
      }
    }
  }

  /**
   * Returns how a decoder's pixels become upright.
   *
   * <p>Android's decoder of HEIC leaves pixels as they are stored. One that turns them itself shows
   * it in the size: then they are not turned twice.
   *
   * @param width of what the decoder brings
   * @param height likewise
   */
  public Orientation orientation(int width, int height) {
    if (heif == null) {
      return orientation;
    }
    boolean isStored = width == heif.width && height == heif.height;
    boolean isTurned = width == heif.height && height == heif.width;
    boolean wasTurned = heif.orientation.turned && isTurned && !isStored;
    return wasTurned ? Orientation.UPRIGHT : heif.orientation;
  }

  /**
   * Cuts what a decoder brings into upright strips.
   *
   * @throws IOException it is larger than what is decoded
   */
  public PictureStrips strips(int width, int height, int stripBytes) throws IOException {
    return new PictureStrips(width, height, orientation(width, height), stripBytes);
  }

  private static Format format(byte[] start) {
    String text = new String(start, StandardCharsets.ISO_8859_1);
    if (text.startsWith("\u00ff\u00d8\u00ff")) {
      return Format.JPEG;
    } else if (text.startsWith("\u0089PNG\r\n\u001a\n")) {
      return Format.PNG;
    } else if (text.startsWith("RIFF") && text.startsWith("WEBP", 8)) {
      return Format.WEBP;
    } else if (text.startsWith("BM")) {
      return Format.BMP;
    } else if (text.startsWith("GIF8")) {
      return Format.GIF;
    } else if (text.startsWith("II*\0") || text.startsWith("MM\0*")) {
      return Format.TIFF;
    } else if (text.length() >= 12 && text.startsWith("ftyp", 4)) {
      String brand = text.substring(8, 12);
      return HEIC.contains(brand) ? Format.HEIC
          : AVIF.contains(brand) ? Format.AVIF : Format.UNKNOWN;
    }
    return Format.UNKNOWN;
  }
}
