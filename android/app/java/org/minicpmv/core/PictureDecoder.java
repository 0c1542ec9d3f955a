package org.minicpmv.core;

import java.io.File;
import java.io.IOException;

/** Decodes pictures with the system's decoders. */
public interface PictureDecoder {
  /** Whether it can decode HEIC. */
  boolean decodesHeic();

  /** Writes an upright JPEG preview; returns the picture's upright width and height. */
  int[] preview(PictureFile source, File jpeg) throws IOException;

  /** Writes all pixels in the engine's file format, see {@link PictureStrips}. */
  void pixels(PictureFile source, File output, Progress progress, CancelToken cancel)
      throws IOException, EngineException;
}
