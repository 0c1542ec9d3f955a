package org.minicpmv.desktop;

import java.awt.Color;
import java.awt.Graphics2D;
import java.awt.geom.AffineTransform;
import java.awt.image.BufferedImage;
import java.io.File;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import javax.imageio.ImageIO;
import org.minicpmv.core.CancelToken;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.Orientation;
import org.minicpmv.core.PictureDecoder;
import org.minicpmv.core.PictureFile;
import org.minicpmv.core.PictureStrips;
import org.minicpmv.core.Progress;

/** The desktop's counterpart of AndroidPictureDecoder: decodes JPEG, PNG and BMP with ImageIO. */
public final class DesktopPictureDecoder implements PictureDecoder {
  private static final int SMALL = 1280;
  private static final int STRIP_BYTES = 1 << 16; // gives several strips even for a small picture

  @Override
  public boolean decodesHeic() {
    return false;
  }

  @Override
  public int[] preview(PictureFile source, File jpeg) throws IOException {
    BufferedImage stored = read(source);
    PictureStrips strips = source.strips(stored.getWidth(), stored.getHeight(), STRIP_BYTES);
    int wide = strips.uprightWidth();
    int high = strips.uprightHeight();
    double scale = Math.min(1, (double) SMALL / Math.max(wide, high));
    BufferedImage small =
        new BufferedImage(side(wide * scale), side(high * scale), BufferedImage.TYPE_INT_RGB);
    Graphics2D graphics = small.createGraphics();
    graphics.setColor(Color.WHITE);
    graphics.fillRect(0, 0, small.getWidth(), small.getHeight());
    graphics.scale(scale, scale);
    Orientation orientation = source.orientation(stored.getWidth(), stored.getHeight());
    graphics.translate(orientation.fromRight ? wide : 0, orientation.fromBottom ? high : 0);
    float[] m = orientation.matrix();
    graphics.drawImage(stored, new AffineTransform(m[0], m[3], m[1], m[4], m[2], m[5]), null);
    graphics.dispose();
    ImageIO.write(small, "jpg", jpeg);
    return new int[] {wide, high};
  }

  @Override
  public void pixels(PictureFile source, File output, Progress progress, CancelToken cancel)
      throws IOException, EngineException {
    BufferedImage picture = read(source);
    PictureStrips strips = source.strips(picture.getWidth(), picture.getHeight(), STRIP_BYTES);
    try (OutputStream target = Files.newOutputStream(output.toPath())) {
      strips.writeHeader(target);
      for (int i = 0; i < strips.count(); i++) {
        cancel.check();
        progress.onProgress("decode", i, strips.count());
        PictureStrips.Strip strip = strips.strip(i);
        byte[] pixels = new byte[strip.width * strip.height * 4];
        for (int j = 0; j < strip.width * strip.height; j++) {
          int rgb = picture.getRGB(strip.left + j % strip.width, strip.top + j / strip.width);
          pixels[4 * j] = (byte) (rgb >> 16);
          pixels[4 * j + 1] = (byte) (rgb >> 8);
          pixels[4 * j + 2] = (byte) rgb;
          pixels[4 * j + 3] = (byte) (rgb >> 24);
        }
        strips.write(strip, pixels, strip.width * 4, target);
      }
    }
  }

  private static int side(double length) {
    return (int) Math.max(1, Math.round(length));
  }

  private static BufferedImage read(PictureFile source) throws IOException {
    BufferedImage picture = ImageIO.read(source.file);
    if (picture == null) {
      throw new IOException("the picture cannot be decoded");
    }
    return picture;
  }
}
