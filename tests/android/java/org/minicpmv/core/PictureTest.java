package org.minicpmv.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.Random;
import org.junit.Test;

/** Formats, orientations and strips; test_pictures.py has real files from other programs. */
public final class PictureTest {
  private static final String HEIC = "\0\0\0\30ftypheic\0\0\0\0mif1heic";

  @Test
  public void stripsJoinToTheUprightPicture() throws Exception {
    Random random = new Random(0);
    for (int orientation = 0; orientation <= 9; orientation++) {
      for (int[] size : new int[][] {{1, 1}, {37, 50}, {50, 37}, {16, 64}, {1, 40}}) {
        byte[] stored = new byte[size[0] * size[1] * 4];
        random.nextBytes(stored);
        byte[] whole = written(size, orientation, stored, Integer.MAX_VALUE);
        assertArrayEquals(whole, written(size, orientation, stored, 1));
        assertArrayEquals(whole, written(size, orientation, stored, 3000));
        assertArrayEquals(upright(size, orientation, stored), pixels(whole));
      }
    }
  }

  /** Writes a picture in strips, whose rows are padded as those of bitmaps. */
  private static byte[] written(int[] size, int orientation, byte[] stored, int memory)
      throws Exception {
    PictureStrips strips = new PictureStrips(size[0], size[1], Orientation.of(orientation), memory);
    ByteArrayOutputStream target = new ByteArrayOutputStream();
    strips.writeHeader(target);
    for (int i = 0; i < strips.count(); i++) {
      PictureStrips.Strip strip = strips.strip(i);
      int rowBytes = strip.width * 4 + 8;
      byte[] pixels = new byte[rowBytes * strip.height];
      for (int y = 0; y < strip.height; y++) {
        int from = ((strip.top + y) * size[0] + strip.left) * 4;
        System.arraycopy(stored, from, pixels, y * rowBytes, strip.width * 4);
      }
      strips.write(strip, pixels, rowBytes, target);
    }
    return target.toByteArray();
  }

  private static byte[] pixels(byte[] file) {
    return Arrays.copyOfRange(file, 24, file.length);
  }

  /** EXIF's definition: where row 0 and column 0 of the stored picture appear when upright. */
  private static byte[] upright(int[] size, int orientation, byte[] stored) {
    boolean turned = orientation >= 5 && orientation <= 8;
    int wide = turned ? size[1] : size[0];
    int high = turned ? size[0] : size[1];
    byte[] seen = new byte[wide * high * 3];
    for (int row = 0; row < size[1]; row++) {
      for (int column = 0; column < size[0]; column++) {
        int x = turned ? row : column;
        int y = turned ? column : row;
        x = "2367".indexOf('0' + orientation) >= 0 ? wide - 1 - x : x;
        y = "3478".indexOf('0' + orientation) >= 0 ? high - 1 - y : y;
        mix(stored, (row * size[0] + column) * 4, seen, (y * wide + x) * 3);
      }
    }
    return seen;
  }

  /** Composites a pixel onto white, with arithmetic independent of the app's. */
  private static void mix(byte[] stored, int from, byte[] seen, int to) {
    double opacity = (stored[from + 3] & 0xff) / 255.0;
    for (int i = 0; i < 3; i++) {
      seen[to + i] = (byte) Math.round((stored[from + i] & 0xff) * opacity + 255 * (1 - opacity));
    }
  }

  @Test
  public void everyLevelIsCompositedOntoWhiteWithEveryAlpha() throws Exception {
    byte[] stored = new byte[256 * 256 * 4];
    byte[] seen = new byte[256 * 256 * 3];
    for (int i = 0; i < 256 * 256; i++) {
      Arrays.fill(stored, 4 * i, 4 * i + 3, (byte) (i >> 8));
      stored[4 * i + 3] = (byte) i;
      mix(stored, 4 * i, seen, 3 * i);
    }
    byte[] pixels = pixels(written(new int[] {256, 256}, 1, stored, 1 << 20));
    assertArrayEquals(seen, pixels);
    assertEquals(255, pixels[0] & 0xff); // black, transparent
    assertEquals(0, pixels[255 * 3]); // black
    assertEquals(127, pixels[128 * 3] & 0xff); // black, half transparent: 255 * 127 / 255
    // (200 * 128 + 255 * 127) / 255 is 227.4.
    assertEquals(227, pixels[(200 * 256 + 128) * 3] & 0xff);
  }

  @Test
  public void aLargePhotoIsCutIntoStripsThatFitInMemory() throws Exception {
    PictureStrips strips = new PictureStrips(8000, 6000, Orientation.CLOCKWISE, 16 << 20);
    assertEquals(6000, strips.uprightWidth());
    int columns = 0;
    for (int i = 0; i < strips.count(); i++) {
      PictureStrips.Strip strip = strips.strip(i);
      assertTrue((long) strip.width * strip.height * 4 <= 16 << 20);
      columns += strip.width;
    }
    assertEquals(8000, columns);
  }

  @Test
  public void theMatrixAgreesWithTheStrips() throws Exception {
    int[] size = {3, 2};
    byte[] stored = new byte[size[0] * size[1] * 4];
    new Random(1).nextBytes(stored);
    for (int number = 1; number <= 8; number++) {
      Orientation orientation = Orientation.of(number);
      float[] m = orientation.matrix();
      int wide = orientation.turned ? size[1] : size[0];
      int high = orientation.turned ? size[0] : size[1];
      byte[] seen = new byte[wide * high * 3];
      for (int row = 0; row < size[1]; row++) {
        for (int column = 0; column < size[0]; column++) {
          float x = m[0] * column + m[1] * row;
          float y = m[3] * column + m[4] * row;
          int right = Math.round(m[0] + m[1] < 0 ? x + wide - 1 : x); // as Bitmap translates it
          int down = Math.round(m[3] + m[4] < 0 ? y + high - 1 : y);
          int from = (row * size[0] + column) * 4;
          mix(stored, from, seen, (down * wide + right) * 3);
        }
      }
      assertArrayEquals("" + number, pixels(written(size, number, stored, 1)), seen);
    }
  }

  @Test
  public void oneOrientationAfterAnotherIsTheProductOfTheirMatrices() {
    for (int i = 1; i <= 8; i++) {
      for (int j = 1; j <= 8; j++) {
        float[] first = Orientation.of(i).matrix();
        float[] next = Orientation.of(j).matrix();
        float[] product = new float[9];
        for (int k = 0; k < 9; k++) {
          for (int l = 0; l < 3; l++) {
            product[k] += next[k / 3 * 3 + l] * first[l * 3 + k % 3];
          }
        }
        assertArrayEquals(product, Orientation.of(i).then(Orientation.of(j)).matrix(), 0);
      }
    }
  }

  private static PictureFile open(byte[] content, boolean decodesHeic) throws IOException {
    File file = File.createTempFile("picture", null);
    try {
      Files.write(file.toPath(), content);
      return PictureFile.open(file, decodesHeic);
    } finally {
      file.delete();
    }
  }

  private static byte[] bytes(String text) {
    return text.getBytes(StandardCharsets.ISO_8859_1);
  }

  private static void refused(String said, String content) {
    try {
      open(bytes(content), false);
    } catch (IOException e) {
      assertTrue(e.getMessage(), e.getMessage().startsWith(said));
      assertTrue(e.getMessage(), e.getMessage().endsWith("; choose a JPEG, PNG or WebP"));
      return;
    }
    fail(said);
  }

  @Test
  public void unsupportedFormatsAreNamed() throws Exception {
    refused("GIF pictures are not supported", "GIF89a\1\0\1\0");
    refused("TIFF pictures are not supported", "II*\0\10\0\0\0");
    refused("TIFF pictures are not supported", "MM\0*\0\0\0\10");
    refused("AVIF pictures are not supported", "\0\0\0\34ftypavif\0\0\0\0");
    refused("PostScript pictures are not supported", "%!PS-Adobe-3.0 EPSF-3.0");
    refused("JPEG 2000 pictures are not supported", "\0\0\0\14jP  \r\n\u0087\n");
    refused("HEIC pictures cannot be decoded here", HEIC);
    for (String other : new String[] {"", "x", "<svg/>", "\0\0\0\30ftypisom\0\0\0\0"}) {
      refused("this is not a picture", other);
    }
    assertEquals(PictureFile.Format.HEIC, open(bytes(HEIC), true).format); // since Android 9
    assertEquals(PictureFile.Format.JPEG, open(bytes("\u00ff\u00d8\u00ff"), false).format);
    assertEquals(PictureFile.Format.BMP, open(bytes("BM"), false).format);
  }

  /** A HEIF with one picture: stored as 60 x 40, mirrored or turned by boxes. */
  private static byte[] heif(String properties, String associations) {
    String ispe = box("ispe", "\0\0\0\0\0\0\0\74\0\0\0\50");
    String ipco = box("ipco", ispe + properties);
    char count = (char) associations.length();
    String ipma = box("ipma", "\0\0\0\0\0\0\0\1\0\1" + count + associations);
    String pitm = box("pitm", "\0\0\0\0\0\1");
    String meta = box("meta", "\0\0\0\0" + pitm + box("iprp", ipco + ipma));
    return bytes(HEIC + meta);
  }

  private static String box(String type, String content) {
    return "\0\0\0" + (char) (content.length() + 8) + type + content;
  }

  private static int turned(byte[] heif, int width, int height) throws IOException {
    return open(heif, true).orientation(width, height).number;
  }

  @Test
  public void heicIsTurnedExactlyOnce() throws Exception {
    String rotated = box("irot", "\3"); // three quarters counter-clockwise
    String mirrored = box("imir", "\1");
    assertEquals(6, turned(heif(rotated, "\1\u0082"), 60, 40));
    assertEquals(1, turned(heif(rotated, "\1\u0082"), 40, 60)); // the decoder has turned it
    assertEquals(1, turned(heif(rotated, "\1"), 60, 40)); // the box belongs to another picture
    assertEquals(5, turned(heif(rotated + mirrored, "\1\u0082\u0083"), 60, 40));
    assertEquals(7, turned(heif(rotated + mirrored, "\1\u0083\u0082"), 60, 40));
    assertEquals(4, turned(heif(box("imir", "\0"), "\1\u0082"), 60, 40));
    assertEquals(3, turned(heif(box("irot", "\2"), "\1\u0082"), 60, 40));
    String pixels = box("mdat", new String(new char[99]));
    String wide = "\0\0\0\1mdat\0\0\0\0\0\0\0\24ABCD"; // an eight-byte size
    for (String before : new String[] {pixels, wide, pixels + wide}) {
      String whole = new String(heif(rotated, "\1\u0082"), StandardCharsets.ISO_8859_1);
      String late = HEIC + before + whole.substring(HEIC.length());
      assertEquals(6, turned(bytes(late), 60, 40));
    }
    String open = new String(heif(rotated, "\1\u0082"), StandardCharsets.ISO_8859_1);
    int size = HEIC.length() + 3; // the meta box's size; 0 means to the end of the file
    assertEquals(
        6, turned(bytes(open.substring(0, size) + '\0' + open.substring(size + 1)), 60, 40));
    for (String odd : new String[] {"\0\0\0\7mdat", "\0\0\0\1mdat\u00ff\0\0\0\0\0\0\0"}) {
      assertEquals(1, turned(bytes(HEIC + odd + open.substring(HEIC.length())), 60, 40));
    }
    assertEquals(1, turned(heif(rotated, "\1\u0089"), 60, 40)); // no such property
  }

  @Test
  public void damagedMetadataIsIgnored() throws Exception {
    byte[] whole = heif(box("irot", "\1"), "\1\u0082");
    for (int length = 24; length < whole.length; length++) {
      assertEquals(1, turned(Arrays.copyOf(whole, length), 60, 40));
    }
    String exif = "Exif\0\0MM\0*\0\0\0\10\0\1\1\22\0\3\0\0\0\1\0\6\0\0\0\0\0\0";
    assertEquals(6, Exif.orientation(bytes(exif), new byte[0]).number);
    Random random = new Random(2);
    for (String start : new String[] {
      "\u00ff\u00d8\u00ff\u00e1\0\60" + exif + "\u00ff\u00da",
      "\u0089PNG\r\n\32\n\0\0\0\50eXIf" + exif + "\0\0\0\0\0\0\0\0IEND",
      "\u0089PNG\r\n\32\n\0\0\0\50zTXtRaw profile type exif\0\0x\u009c" + exif,
      "\u0089PNG\r\n\32\n\0\0\0\50iTXtXML:com.adobe.xmp\0\1\0\0\0x\u009c" + exif,
      "RIFF\0\0\0\0WEBPEXIF\50\0\0\0" + exif + "XMP \1\0\0\0 ",
    }) {
      byte[] content = bytes(start);
      for (int i = 0; i < 300; i++) {
        byte[] damaged = Arrays.copyOf(content, content.length - random.nextInt(3) * (i % 17));
        for (int j = random.nextInt(4); j > 0 && damaged.length > 12; j--) {
          damaged[12 + random.nextInt(damaged.length - 12)] = (byte) random.nextInt();
        }
        int number = open(damaged, false).orientation(60, 40).number;
        assertTrue(number >= 1 && number <= 8);
      }
    }
    String tag = "\1\22\0\3\0\0\0\1";
    for (String wrong : new String[] {
      exif.replace("MM", "XX"), exif.replace("\0*", "\0+"), exif.replace("\10\0\1", "\u00ff\0\1"),
      exif.replace(tag, "\1\22\0\2\0\0\0\1"), exif.replace(tag, "\1\22\0\3\0\0\0\2"),
      exif.replace("\0\6", "\0\11"), exif.replace("\0\6", "\0\0"), exif.substring(0, 20),
    }) {
      assertEquals(1, Exif.orientation(bytes(wrong), new byte[0]).number);
    }
  }

  @Test
  public void picturesBeyondTheSizeLimitAreRefused() throws Exception {
    PictureFile file = open(bytes("BM"), false);
    assertEquals(20_000, file.strips(20_000, 10_000, 1 << 20).uprightWidth());
    for (int[] size : new int[][] {{20_001, 10_000}, {65_536, 65_536}, {0, 1}, {-1, 1}}) {
      try {
        file.strips(size[0], size[1], 1 << 20);
      } catch (IOException e) {
        continue;
      }
      fail(size[0] + " x " + size[1]);
    }
  }
}
