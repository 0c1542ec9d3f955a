package org.minicpmv.core;

import java.io.File;
import java.io.IOException;

/** Decodes pictures, as the phone's system does. */
public interface Decoder {
  /** Whether it decodes HEIC. */
  boolean decodesHeic();

  /** Writes a small upright JPEG for the screen; returns the picture's upright width and height. */
  int[] preview(PictureFile source, File jpeg) throws IOException;

  /** Writes every pixel into the engine's file, see {@link PictureStrips}. */
  void pixels(PictureFile source, File output, Progress progress, Cancel cancel)
      throws IOException, EngineException;
}
