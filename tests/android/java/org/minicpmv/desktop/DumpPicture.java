package org.minicpmv.desktop;

import java.io.File;
import java.io.IOException;
import org.minicpmv.core.CancelToken;
import org.minicpmv.core.PictureFile;
import org.minicpmv.core.Progress;

/**
 * Prints what the app reads from picture files: for each its format and orientation, or why it is
 * refused.
 *
 * <p>Arguments: the pictures' stored width and height, then files. For a PNG, also writes the pixel
 * file that the engine would get.
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
        new DesktopPictureDecoder().pixels(picture, output, quiet, new CancelToken());
      }
    }
  }
}
