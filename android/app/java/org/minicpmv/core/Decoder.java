package org.minicpmv.core;

import java.io.File;
import java.io.IOException;

/** Decodes pictures, as the phone's system does. */
public interface Decoder {
  /** Writes a small JPEG for the screen; returns the upright width and height. */
  int[] preview(File source, File jpeg) throws IOException;

  /** Writes every pixel into the engine's file, see {@link PictureStrips}. */
  void pixels(File source, File output, Progress progress, Cancel cancel)
      throws IOException, EngineException;
}
