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
 * <p>The table of formats, and what is said of one that is refused, are those of
 * runtime/inputs/picture_format.py, but for what only one of the two hosts can decode. Files come from
 * anywhere: nothing in them is believed.
 */
public final class PictureFile {
  private static final String ADVICE = "; choose a JPEG, PNG or WebP";
  private static final int START = 16; // bytes that tell the format
  private static final List<String> HEIC_BRANDS =
      Arrays.asList("heic", "heix", "hevc", "heim", "heis", "mif1", "msf1");
  private static final List<String> AVIF_BRANDS = Arrays.asList("avif", "avis");

  /** What the bytes are, whatever the file's name says. */
  public enum Format {
    JPEG("JPEG", "\u00ff\u00d8\u00ff"),
    PNG("PNG", "\u0089PNG\r\n\32\n"),
    WEBP("WebP"),
    BMP("BMP", "BM"),
    TIFF("TIFF", "II*\0", "MM\0*"),
    HEIC("HEIC"),
    AVIF("AVIF"),
    GIF("GIF", "GIF8"),
    POSTSCRIPT("PostScript", "%!PS", "\u00c5\u00d0\u00d3\u00c6"), // alone; with a small picture
    PDF("PDF", "%PDF"),
    PSD("PSD", "8BPS"),
    ICO("ICO", "\0\0\1\0"),
    JPEG_2000("JPEG 2000", "\0\0\0\14jP  ", "\u00ff\u004f\u00ff\u0051"),
    JPEG_XL("JPEG XL", "\0\0\0\14JXL ", "\u00ff\n"),
    UNKNOWN("unknown");

    final String label; // for people
    private final String[] starts;

    Format(String label, String... starts) {
      this.label = label;
      this.starts = starts;
    }

    static Format of(String text) {
      for (Format format : values()) {
        for (String start : format.starts) {
          if (text.startsWith(start)) {
            return format;
          }
        }
      }
      if (text.startsWith("RIFF") && text.startsWith("WEBP", 8)) {
        return WEBP;
      } else if (text.length() >= 12 && text.startsWith("ftyp", 4)) {
        String brand = text.substring(8, 12);
        return HEIC_BRANDS.contains(brand) ? HEIC : AVIF_BRANDS.contains(brand) ? AVIF : UNKNOWN;
      }
      return UNKNOWN;
    }
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
      Format format = Format.of(new String(start, StandardCharsets.ISO_8859_1));
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
          throw new IOException(format.label + " pictures are not taken" + ADVICE);
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
}
