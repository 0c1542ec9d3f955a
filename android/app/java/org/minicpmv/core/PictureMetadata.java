package org.minicpmv.core;

import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.zip.DataFormatException;
import java.util.zip.Inflater;

/**
 * Finds EXIF and XMP in a file of a known format. For a damaged or truncated file it returns what
 * was found before the damage; whether the picture can be decoded is up to the decoder.
 */
final class PictureMetadata {
  private static final int LIMIT = 1 << 20; // bytes of metadata that are read
  private static final int MAX_PARTS = 100_000; // segments, chunks or boxes of a file
  private static final byte[] ADOBE = ascii("http://ns.adobe.com/xap/1.0/\0");
  private static final String XMP_KEY = "XML:com.adobe.xmp\0";
  private static final String PROFILE_KEY = "Raw profile type exif\0";
  private static final int PROFILE_LINES = 3; // before a profile's hexadecimal digits

  private final RandomAccessFile file;
  private final ByteArrayOutputStream exif = new ByteArrayOutputStream();
  private byte[] xmp = {};

  PictureMetadata(RandomAccessFile file) {
    this.file = file;
  }

  Orientation ofJpeg() throws IOException {
    try {
      file.seek(2);
      for (int i = 0; i < MAX_PARTS; i++) {
        int marker = marker();
        if (marker == 0xda || marker == 0xd9) { // start of scan, end of image
          break;
        } else if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd7)) {
          continue; // a marker without a segment
        }
        int size = file.readUnsignedShort() - 2;
        long next = file.getFilePointer() + size;
        if (size < 0) {
          break;
        }
        if (marker == 0xe1) {
          takeSegment(content(size));
        }
        file.seek(next);
      }
    } catch (EOFException e) {
      return found(); // truncated
    }
    return found();
  }

  private int marker() throws IOException {
    int value = file.readUnsignedByte();
    while (value != 0xff) { // skip bytes between segments
      value = file.readUnsignedByte();
    }
    while (value == 0xff) {
      value = file.readUnsignedByte();
    }
    return value;
  }

  private void takeSegment(byte[] segment) {
    if (Exif.startsWith(segment, Exif.NAME)) { // long EXIF is split over several segments
      exif.write(segment, Exif.NAME.length, segment.length - Exif.NAME.length);
    } else if (Exif.startsWith(segment, ADOBE)) {
      xmp = Arrays.copyOfRange(segment, ADOBE.length, segment.length);
    }
  }

  Orientation ofPng() throws IOException {
    try {
      file.seek(8);
      for (int i = 0; i < MAX_PARTS; i++) {
        long size = file.readInt() & 0xffffffffL;
        String type = name();
        long next = file.getFilePointer() + size + 4; // a checksum follows
        if (type.equals("IEND")) {
          break;
        } else if (size <= LIMIT) {
          takeChunk(type, (int) size);
        }
        file.seek(next);
      }
    } catch (EOFException e) {
      return found();
    }
    return found();
  }

  private void takeChunk(String type, int size) throws IOException {
    if (type.equals("eXIf")) {
      exif.reset();
      exif.write(content(size), 0, size);
    } else if (type.equals("iTXt") || type.equals("zTXt") || type.equals("tEXt")) {
      byte[] content = content(size);
      String text = new String(content, StandardCharsets.ISO_8859_1);
      if (text.startsWith(XMP_KEY) && type.equals("iTXt")) {
        xmp = international(content, XMP_KEY.length());
      } else if (text.startsWith(PROFILE_KEY) && exif.size() == 0) {
        int begin = PROFILE_KEY.length();
        byte[] profile = type.equals("zTXt")
            ? inflated(content, begin + 1) : ascii(text.substring(begin));
        byte[] bytes = hexadecimal(profile);
        exif.write(bytes, 0, bytes.length);
      }
    }
  }

  /** Returns the text of an iTXt chunk, after flag, method, language and translated key. */
  private static byte[] international(byte[] content, int begin) {
    int at = begin + 2;
    for (int ends = 0; ends < 2 && at < content.length; at++) {
      ends += content[at] == 0 ? 1 : 0;
    }
    if (at >= content.length) {
      return new byte[0];
    }
    return content[begin] == 1
        ? inflated(content, at) : Arrays.copyOfRange(content, at, content.length);
  }

  /** Inflates at most LIMIT bytes: a few bytes may expand to gigabytes. */
  private static byte[] inflated(byte[] content, int begin) {
    if (begin >= content.length) {
      return new byte[0];
    }
    Inflater inflater = new Inflater();
    byte[] text = new byte[LIMIT];
    int size = 0;
    try {
      inflater.setInput(content, begin, content.length - begin);
      for (int count = 1; count > 0 && size < LIMIT; size += count) {
        count = inflater.inflate(text, size, LIMIT - size);
      }
    } catch (DataFormatException e) {
      size = 0; // damaged
    } finally {
      inflater.end();
    }
    return Arrays.copyOf(text, size);
  }

  /** Decodes a raw profile: an empty line, its name, its length, and lines of hex digits. */
  private static byte[] hexadecimal(byte[] profile) {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    int lines = 0;
    int high = -1;
    for (byte b : profile) {
      int digit = Character.digit(b, 16);
      if (lines < PROFILE_LINES) {
        lines += b == '\n' ? 1 : 0;
      } else if (digit >= 0 && high < 0) {
        high = digit;
      } else if (digit >= 0) {
        bytes.write(high << 4 | digit);
        high = -1;
      }
    }
    return bytes.toByteArray();
  }

  Orientation ofWebp() throws IOException {
    try {
      file.seek(12);
      for (int i = 0; i < MAX_PARTS; i++) {
        String type = name();
        long size = Integer.reverseBytes(file.readInt()) & 0xffffffffL;
        long next = file.getFilePointer() + size + (size & 1);
        if (type.equals("EXIF") && exif.size() == 0) {
          exif.write(content(size), 0, (int) Math.min(size, LIMIT));
        } else if (type.equals("XMP ")) {
          xmp = content(size);
        }
        file.seek(next);
      }
    } catch (EOFException e) {
      return found(); // the normal end
    }
    return found();
  }

  /** Returns null if the file lacks the required boxes. */
  Heif ofHeic() throws IOException {
    try {
      long at = 0;
      for (int i = 0; i < MAX_PARTS; i++) {
        file.seek(at);
        long size = file.readInt() & 0xffffffffL;
        String type = name();
        size = size == 1 ? file.readLong() : size == 0 ? file.length() - at : size; // 0, 1: codes
        long head = file.getFilePointer() - at;
        if (size < head || size > file.length()) {
          return null;
        } else if (type.equals("meta")) {
          return Heif.read(content(size - head));
        }
        at += size;
      }
    } catch (EOFException e) {
      return null;
    }
    return null;
  }

  private Orientation found() {
    return Exif.orientation(exif.toByteArray(), xmp);
  }

  private String name() throws IOException {
    byte[] name = new byte[4];
    file.readFully(name);
    return new String(name, StandardCharsets.ISO_8859_1);
  }

  /** Reads a part, up to LIMIT bytes. */
  private byte[] content(long size) throws IOException {
    byte[] content = new byte[(int) Math.min(size, LIMIT)];
    file.readFully(content);
    return content;
  }

  private static byte[] ascii(String text) {
    return text.getBytes(StandardCharsets.ISO_8859_1);
  }
}
