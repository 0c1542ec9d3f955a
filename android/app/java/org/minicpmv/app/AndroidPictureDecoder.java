package org.minicpmv.app;

import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.BitmapRegionDecoder;
import android.graphics.Canvas;
import android.graphics.Color;
import android.graphics.Matrix;
import android.graphics.Rect;
import android.os.Build;
import java.io.BufferedOutputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import org.minicpmv.core.CancelToken;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.Orientation;
import org.minicpmv.core.PictureDecoder;
import org.minicpmv.core.PictureFile;
import org.minicpmv.core.PictureStrips;
import org.minicpmv.core.Progress;

/** Decodes pictures with Android's decoders, in strips, so that a 48-megapixel photo fits. */
final class AndroidPictureDecoder implements PictureDecoder {
  private static final int PREVIEW_SIDE = 640; // pixels, the longer side
  private static final int QUALITY = 85; // of the preview's JPEG
  private static final int STRIP_BYTES = 16 << 20;
  private static final long WHOLE_PIXELS = 16_000_000; // limit for formats without region decoding

  @Override
  public boolean decodesHeic() {
    return Build.VERSION.SDK_INT >= Build.VERSION_CODES.P;
  }

  @Override
  public int[] preview(PictureFile picture, File jpeg) throws IOException {
    File source = picture.file;
    BitmapFactory.Options bounds = bounds(source);
    PictureStrips strips = picture.strips(bounds.outWidth, bounds.outHeight, STRIP_BYTES);
    BitmapFactory.Options options = new BitmapFactory.Options();
    options.inSampleSize = 1;
    int longer = Math.max(bounds.outWidth, bounds.outHeight);
    while (longer / (options.inSampleSize * 2) >= PREVIEW_SIDE) {
      options.inSampleSize *= 2;
    }
    Bitmap small = BitmapFactory.decodeFile(source.getPath(), options);
    if (small == null) {
      throw new IOException("not a picture that this phone can decode");
    }
    Matrix matrix = matrix(picture.orientation(bounds.outWidth, bounds.outHeight));
    Bitmap turned =
        Bitmap.createBitmap(small, 0, 0, small.getWidth(), small.getHeight(), matrix, true);
    Bitmap upright = onWhite(turned);
    // Compress to memory first: `compress` does not report why a file could not be written.
    ByteArrayOutputStream encoded = new ByteArrayOutputStream();
    if (!upright.compress(Bitmap.CompressFormat.JPEG, QUALITY, encoded)) {
      throw new IOException("the preview cannot be encoded");
    }
    try (OutputStream target = new FileOutputStream(jpeg)) {
      encoded.writeTo(target);
    }
    return new int[] {strips.uprightWidth(), strips.uprightHeight()};
  }

  @Override
  public void pixels(PictureFile picture, File output, Progress progress, CancelToken cancel)
      throws IOException, EngineException {
    File source = picture.file;
    BitmapFactory.Options bounds = bounds(source);
    BitmapRegionDecoder regions = regions(source);
    if (regions == null && (long) bounds.outWidth * bounds.outHeight > WHOLE_PIXELS) {
      throw new IOException("a picture of this format and size does not fit in memory");
    }
    int stripBytes = regions == null ? Integer.MAX_VALUE : STRIP_BYTES; // no regions: one strip
    PictureStrips strips = picture.strips(bounds.outWidth, bounds.outHeight, stripBytes);
    try (OutputStream target = new BufferedOutputStream(new FileOutputStream(output))) {
      strips.writeHeader(target);
      for (int i = 0; i < strips.count(); i++) {
        cancel.check();
        progress.onProgress("decode", i, strips.count());
        PictureStrips.Strip strip = strips.strip(i);
        Bitmap bitmap =
            regions == null
                ? BitmapFactory.decodeFile(source.getPath(), raw())
                : regions.decodeRegion(rect(strip), raw());
        if (bitmap == null) {
          throw new IOException("the picture is damaged");
        }
        write(strips, strip, bitmap, target);
      }
      progress.onProgress("decode", strips.count(), strips.count());
    } finally {
      if (regions != null) {
        regions.recycle();
      }
    }
  }

  /** Composites onto white, as for the model: JPEG would turn transparent pixels black. */
  private static Bitmap onWhite(Bitmap picture) {
    if (!picture.hasAlpha()) {
      return picture;
    }
    Bitmap white =
        Bitmap.createBitmap(picture.getWidth(), picture.getHeight(), Bitmap.Config.ARGB_8888);
    Canvas canvas = new Canvas(white);
    canvas.drawColor(Color.WHITE);
    canvas.drawBitmap(picture, 0, 0, null);
    return white;
  }

  private static Rect rect(PictureStrips.Strip strip) {
    return new Rect(strip.left, strip.top, strip.left + strip.width, strip.top + strip.height);
  }

  private static void write(
      PictureStrips strips, PictureStrips.Strip strip, Bitmap bitmap, OutputStream target)
      throws IOException {
    if (bitmap.getWidth() != strip.width || bitmap.getHeight() != strip.height) {
      throw new IOException("the decoded picture has the wrong size");
    }
    // Read the raw bytes: getPixels would convert colours, which the reference does not do.
    ByteBuffer pixels = ByteBuffer.allocate(bitmap.getByteCount());
    bitmap.copyPixelsToBuffer(pixels);
    strips.write(strip, pixels.array(), bitmap.getRowBytes(), target);
    bitmap.recycle();
  }

  /** Returns null for a format without region decoding. */
  private static BitmapRegionDecoder regions(File source) {
    try {
      return BitmapRegionDecoder.newInstance(source.getPath(), false);
    } catch (IOException e) {
      return null;
    }
  }

  private static BitmapFactory.Options bounds(File source) throws IOException {
    BitmapFactory.Options bounds = new BitmapFactory.Options();
    bounds.inJustDecodeBounds = true;
    BitmapFactory.decodeFile(source.getPath(), bounds);
    if (bounds.outWidth < 1 || bounds.outHeight < 1) {
      throw new IOException("not a picture that this phone can decode");
    }
    return bounds;
  }

  private static BitmapFactory.Options raw() {
    BitmapFactory.Options options = new BitmapFactory.Options();
    options.inPreferredConfig = Bitmap.Config.ARGB_8888;
    options.inPremultiplied = false; // `PictureStrips` composites onto white, exactly
    options.inScaled = false;
    return options;
  }

  private static Matrix matrix(Orientation orientation) {
    Matrix matrix = new Matrix();
    matrix.setValues(orientation.matrix());
    return matrix;
  }
}
