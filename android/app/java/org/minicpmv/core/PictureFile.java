package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;

/**
 * A picture file before decoding: its format and orientation.
 *
 * <p>The table of formats and the error messages are those of runtime/inputs/picture_format.py,
 * except for formats that only one of the two hosts can decode. Files are untrusted.
 */
public final class PictureFile {
  private static final String ADVICE = "; choose a JPEG, PNG or WebP";
  private static final int START = 16; // bytes that identify the format
  private static final List<String> HEIC_BRANDS =
      Arrays.asList("heic", "heix", "hevc", "heim", "heis", "mif1", "msf1");
  private static final List<String> AVIF_BRANDS = Arrays.asList("avif", "avis");

  /** The format according to the bytes, whatever the file's name. */
  public enum Format {
    JPEG("JPEG", "\u00ff\u00d8\u00ff"),
    PNG("PNG", "\u0089PNG\r\n\32\n"),
    WEBP("WebP"),
    BMP("BMP", "BM"),
    TIFF("TIFF", "II*\0", "MM\0*"),
    HEIC("HEIC"),
    AVIF("AVIF"),
    GIF("GIF", "GIF8"),
    POSTSCRIPT("PostScript", "%!PS", "\u00c5\u00d0\u00d3\u00c6"), // plain; with a preview
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
  private final Heif heif; // null: not a HEIF file, or without the required boxes

  private PictureFile(File file, Format format, Orientation orientation, Heif heif) {
    this.file = file;
    this.format = format;
    this.orientation = orientation;
    this.heif = heif;
  }

  /**
   * Reads a file's format and orientation.
   *
   * @param decodesHeic whether this system decodes HEIC; Android does since version 9
   * @throws IOException if the format is not supported; the message says what to choose instead
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
          throw new IOException(format.label + " pictures are not supported" + ADVICE);
      }
    }
  }

  /**
   * Returns how to turn a decoder's output upright.
   *
   * <p>Android's HEIC decoder returns pixels as stored. The size shows if a decoder has already
   * turned them; then they are not turned again.
   *
   * @param width of the decoder's output
   * @param height of the decoder's output
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
   * Cuts a decoder's output into upright strips.
   *
   * @throws IOException if the picture is too large
   */
  public PictureStrips strips(int width, int height, int stripBytes) throws IOException {
    return new PictureStrips(width, height, orientation(width, height), stripBytes);
  }
}
