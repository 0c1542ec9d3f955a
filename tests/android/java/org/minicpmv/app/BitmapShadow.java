package org.minicpmv.app;

import android.graphics.Bitmap;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import org.robolectric.annotation.Implementation;
import org.robolectric.annotation.Implements;
import org.robolectric.shadows.ShadowNativeBitmap;

/** Gives raw pixels as RGBA, as phones do: Skia for this PC stores them as BGRA. */
@Implements(
    value = Bitmap.class,
    minSdk = 26,
    isInAndroidSdk = false,
    callNativeMethodsByDefault = true)
public final class BitmapShadow extends ShadowNativeBitmap {
  private static final int PIXEL = 4; // bytes

  @Implementation
  protected static void nativeCopyPixelsToBuffer(long bitmap, Buffer target) {
    ShadowNativeBitmap.nativeCopyPixelsToBuffer(bitmap, target);
    swap((ByteBuffer) target);
  }

  @Implementation
  protected static void nativeCopyPixelsFromBuffer(long bitmap, Buffer source) {
    ByteBuffer pixels = (ByteBuffer) source;
    swap(pixels);
    ShadowNativeBitmap.nativeCopyPixelsFromBuffer(bitmap, source);
    swap(pixels);
  }

  private static void swap(ByteBuffer pixels) {
    for (int i = pixels.position(); i + PIXEL <= pixels.limit(); i += PIXEL) {
      byte first = pixels.get(i);
      pixels.put(i, pixels.get(i + 2));
      pixels.put(i + 2, first);
    }
  }
}
