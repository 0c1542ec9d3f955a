package org.minicpmv.sample;

import static org.junit.Assert.assertTrue;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import org.junit.rules.ExternalResource;
import org.minicpmv.core.EngineException;
import org.minicpmv.core.MiniCpmV;
import org.robolectric.RuntimeEnvironment;

/** An app that has the library, installed on Android's own code, with the demo's engine for this PC. */
public final class HostApp extends ExternalResource {
  static final String ENGINE = "libminicpmv.so";
  private static final String WEIGHTS = "weights.safetensors";

  @Override
  protected void before() throws Exception {
    File libraries = Files.createTempDirectory("lib").toFile();
    link(new File(System.getProperty("engine")), new File(libraries, ENGINE));
    context().getApplicationInfo().nativeLibraryDir = libraries.getPath();
  }

  /** Has the engine's requests written to a file, and the engine compute with four threads. */
  File record() throws Exception {
    File requests = File.createTempFile("requests", ".txt");
    File engine = new File(context().getApplicationInfo().nativeLibraryDir, ENGINE);
    String program = engine.toPath().toRealPath().toString();
    Files.delete(engine.toPath());
    // Each request is in the file before the engine can answer it; with `tee` it may come later.
    String script =
        "#!/bin/sh\nwhile IFS= read -r line; do printf '%s\\n' \"$line\" >> '" + requests
            + "'; printf '%s\\n' \"$line\"; done | TVM_NUM_THREADS=4 '" + program + "'\n";
    Files.write(engine.toPath(), script.getBytes(StandardCharsets.UTF_8));
    assertTrue(engine.setExecutable(true));
    return requests;
  }

  Context context() {
    return RuntimeEnvironment.getApplication();
  }

  /** The folder that a PC can push files to. */
  File files() {
    return context().getExternalFilesDir(null);
  }

  /** Pushes the weights and the picture. */
  void pushFiles() throws Exception {
    link(new File(System.getProperty("bundle"), WEIGHTS), new File(files(), WEIGHTS));
    link(new File(System.getProperty("picture")), new File(files(), "picture.png"));
  }

  Bitmap picture() {
    return BitmapFactory.decodeFile(System.getProperty("picture"));
  }

  MiniCpmV open() throws EngineException {
    MiniCpmV model = MiniCpmV.open(context(), files(), null);
    model.setGreedy(true);
    return model;
  }

  private static void link(File from, File to) throws Exception {
    Files.createSymbolicLink(to.toPath(), from.toPath());
  }
}
