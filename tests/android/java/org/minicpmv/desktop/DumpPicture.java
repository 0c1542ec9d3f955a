package org.minicpmv.desktop;

import java.io.File;
import java.io.IOException;
import org.minicpmv.core.Cancel;
import org.minicpmv.core.PictureFile;
import org.minicpmv.core.Progress;

/**
 * Says of picture files what the app sees in them: a line of format and orientation each, or why
 * one is refused.
 *
 * <p>Arguments: the pictures' width and height as stored, then files. Beside a PNG, the pixels that
 * the engine would get are written.
 */
public final class DumpPicture {
  private DumpPicture() {}

  public static void main(String[] arguments) throws Exception {
    int width = Integer.parseInt(arguments[0]);
    int height = Integer.parseInt(arguments[1]);
    for (int i = 2; i < arguments.length; i++) {
      PictureFile picture;
      try {
        picture = PictureFile.open(new File(arguments[i]), true);
      } catch (IOException e) {
        System.out.println(e.getMessage());
        continue;
      }
      System.out.println(picture.format + " " + picture.orientation(width, height).number);
      if (picture.format == PictureFile.Format.PNG) {
        Progress quiet =
            new Progress() {
              @Override
              public void onProgress(String stage, long done, long total) {}
            };
        File output = new File(arguments[i] + ".pixels");
        new DesktopDecoder().pixels(picture, output, quiet, new Cancel());
      }
    }
  }
}
