package org.minicpmv.app;

import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.BitmapRegionDecoder;
import android.graphics.Rect;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.List;
import org.robolectric.annotation.Implementation;
import org.robolectric.annotation.Implements;
import org.robolectric.shadow.api.Shadow;

/** Decodes a region by cropping the whole picture; Robolectric's decoder returns empty pixels. */
@Implements(BitmapRegionDecoder.class)
public final class RegionShadow {
  private static final List<String> TYPES = Arrays.asList("image/jpeg", "image/png", "image/webp");

  private String path;

  @Implementation
  protected static BitmapRegionDecoder newInstance(String path, boolean isShareable)
      throws IOException {
    BitmapFactory.Options bounds = new BitmapFactory.Options();
    bounds.inJustDecodeBounds = true;
    BitmapFactory.decodeFile(path, bounds);
    if (!TYPES.contains(bounds.outMimeType)) {
      throw new IOException("Image format not supported");
    }
    BitmapRegionDecoder decoder = Shadow.newInstanceOf(BitmapRegionDecoder.class);
    ((RegionShadow) Shadow.extract(decoder)).path = path;
    return decoder;
  }

  @Implementation
  protected Bitmap decodeRegion(Rect region, BitmapFactory.Options options) {
    Bitmap whole = BitmapFactory.decodeFile(path, options);
    if (whole == null) {
      return null;
    }
    ByteBuffer pixels = ByteBuffer.allocate(whole.getByteCount());
    whole.copyPixelsToBuffer(pixels);
    int pixel = whole.getRowBytes() / whole.getWidth();
    ByteBuffer cropped = ByteBuffer.allocate(region.width() * region.height() * pixel);
    for (int y = region.top; y < region.bottom; y++) {
      int start = y * whole.getRowBytes() + region.left * pixel;
      cropped.put(pixels.array(), start, region.width() * pixel);
    }
    cropped.rewind();
    Bitmap part = Bitmap.createBitmap(region.width(), region.height(), whole.getConfig());
    part.setHasAlpha(whole.hasAlpha());
    part.setPremultiplied(whole.isPremultiplied());
    part.copyPixelsFromBuffer(cropped);
    return part;
  }

  @Implementation
  protected void recycle() {}
}
