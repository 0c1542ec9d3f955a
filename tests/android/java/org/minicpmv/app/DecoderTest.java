package org.minicpmv.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import android.graphics.BitmapFactory;
import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.util.Arrays;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.minicpmv.core.CancelToken;
import org.minicpmv.core.PictureFile;
import org.minicpmv.core.Progress;
import org.robolectric.RobolectricTestRunner;

/**
 * Pixels of Android's decoders, compared with Pillow's. tests/android/test_app.py writes the folder
 * `pictures`: each `NAME` with `NAME.pixels`, a picture file of the engine's protocol.
 */
@RunWith(RobolectricTestRunner.class)
public class DecoderTest {
  private static final File FOLDER = new File(System.getProperty("pictures"));
  private static final String PIXELS = ".pixels";
  private static final int HEADER = 24; // bytes of a picture file
  private static final int PREVIEW_SIDE = 1280; // pixels; at most, on the longer side

  private final AndroidPictureDecoder decoder = new AndroidPictureDecoder();

  @Test
  public void pixelsAreThoseOfPillow() throws Exception {
    File[] expected = FOLDER.listFiles();
    assertTrue(expected.length > 0);
    Arrays.sort(expected);
    StringBuilder differences = new StringBuilder();
    for (File file : expected) {
      if (file.getName().endsWith(PIXELS)) {
        differences.append(compare(file));
      }
    }
    assertEquals("", differences.toString());
  }

  @Test
  public void previewsAreUprightAndSmall() throws Exception {
    for (File file : FOLDER.listFiles()) {
      if (file.getName().endsWith(PIXELS)) {
        continue;
      }
      File preview = File.createTempFile("preview", ".jpg");
      int[] size = decoder.preview(PictureFile.open(file, false), preview);
      ByteBuffer header = header(Files.readAllBytes(new File(file.getPath() + PIXELS).toPath()));
      assertEquals(file.getName(), header.getInt(12), size[0]);
      assertEquals(file.getName(), header.getInt(16), size[1]);
      BitmapFactory.Options bounds = new BitmapFactory.Options();
      bounds.inJustDecodeBounds = true;
      BitmapFactory.decodeFile(preview.getPath(), bounds);
      assertEquals("image/jpeg", bounds.outMimeType);
      assertEquals(size[0] > size[1], bounds.outWidth > bounds.outHeight);
      assertTrue(Math.max(bounds.outWidth, bounds.outHeight) <= PREVIEW_SIDE);
    }
  }

  /** Returns how a picture differs from what is expected; empty if it does not. */
  private String compare(File file) throws Exception {
    String path = file.getPath();
    File source = new File(path.substring(0, path.length() - PIXELS.length()));
    File output = File.createTempFile("output", PIXELS);
    decoder.pixels(PictureFile.open(source, false), output, new Quiet(), new CancelToken());
    byte[] found = Files.readAllBytes(output.toPath());
    byte[] wanted = Files.readAllBytes(file.toPath());
    if (found.length != wanted.length) {
      return source.getName() + ": " + found.length + " bytes, not " + wanted.length + "\n";
    }
    int largest = 0;
    int different = 0;
    for (int i = 0; i < found.length; i++) {
      int difference = Math.abs((found[i] & 0xff) - (wanted[i] & 0xff));
      largest = Math.max(largest, difference);
      different += difference == 0 ? 0 : 1;
    }
    return different == 0
        ? ""
        : source.getName() + ": " + different + " bytes differ, by up to " + largest + "\n";
  }

  private static ByteBuffer header(byte[] file) {
    return ByteBuffer.wrap(file, 0, HEADER).order(ByteOrder.LITTLE_ENDIAN);
  }

  /** Reports nothing. */
  private static final class Quiet implements Progress {
    @Override
    public void onProgress(String stage, long done, long total) {}
  }
}
