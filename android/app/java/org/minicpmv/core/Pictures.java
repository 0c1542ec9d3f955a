package org.minicpmv.core;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.util.Set;
import java.util.UUID;
import org.json.JSONObject;

/** The pictures of the chats: each original file, and a preview for the screen. */
public final class Pictures {
  private static final String SMALL = ".jpg";
  private static final String EMBEDDINGS = ".embeddings";
  private static final long LIMIT = 200L << 20; // bytes of a file; larger than any photo
  private static final int BLOCK = 1 << 16;

  private final File folder;
  private final PictureDecoder decoder;

  public Pictures(File folder, PictureDecoder decoder) throws IOException {
    this.folder = folder;
    this.decoder = decoder;
    FileTools.makeFolder(folder);
  }

  /** Stores a picture; returns its id, width and height. */
  public JSONObject add(InputStream source) throws EngineException {
    String id = UUID.randomUUID().toString();
    File partial = new File(folder, id + ".partial");
    try {
      copy(source, partial);
      int[] size = decoder.preview(open(partial), small(id));
      FileTools.move(partial, original(id));
      return Json.object("id", id, "width", size[0], "height", size[1]);
    } catch (IOException | RuntimeException | OutOfMemoryError e) { // damaged files cause any
      small(id).delete();
      throw FileTools.failure(EngineException.INVALID_PICTURE, "", e);
    } finally {
      partial.delete();
    }
  }

  public boolean has(String id) {
    return original(id).isFile();
  }

  /** The preview's file. */
  public File small(String id) {
    return new File(folder, id + SMALL);
  }

  /**
   * The file of a picture's embeddings, written by the engine.
   *
   * @param maxSlices the most slices into which the picture was cut; 0: the model cuts none
   */
  public File embeddings(String id, int maxSlices) {
    String detail = maxSlices == 0 ? "" : "." + maxSlices;
    return new File(folder, id + detail + EMBEDDINGS);
  }

  /** Decodes a picture to the engine's file format. */
  public void pixels(String id, File output, Progress progress, CancelToken cancel)
      throws EngineException {
    decode(decoder, original(id), output, progress, cancel);
  }

  /** Decodes a picture's file to the engine's file format. */
  static void decode(
      PictureDecoder decoder, File file, File output, Progress progress, CancelToken cancel)
      throws EngineException {
    try {
      PictureFile picture = PictureFile.open(file, decoder.decodesHeic());
      decoder.pixels(picture, output, progress, cancel);
    } catch (IOException | RuntimeException | OutOfMemoryError e) {
      throw FileTools.failure(
          EngineException.INVALID_PICTURE, "the picture cannot be decoded", e);
    }
  }

  /** Deletes the pictures that no chat uses. */
  public void keepOnly(Set<String> used) {
    for (File file : FileTools.list(folder)) {
      String name = file.getName();
      int dot = name.indexOf('.');
      if (!used.contains(dot < 0 ? name : name.substring(0, dot))) {
        file.delete(); // if this fails, a later start tries again
      }
    }
  }

  private PictureFile open(File file) throws IOException {
    return PictureFile.open(file, decoder.decodesHeic());
  }

  private File original(String id) {
    return new File(folder, id);
  }

  private static void copy(InputStream source, File target) throws IOException {
    byte[] block = new byte[BLOCK];
    long done = 0;
    try (OutputStream stream = Files.newOutputStream(target.toPath())) {
      for (int count; (count = source.read(block)) >= 0; ) {
        done += count;
        if (done > LIMIT) {
          throw new IOException("the file is larger than " + (LIMIT >> 20) + " MiB");
        }
        stream.write(block, 0, count);
      }
    }
  }
}
