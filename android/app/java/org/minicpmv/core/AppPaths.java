package org.minicpmv.core;

import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** Where things are on this system. */
public final class Places {
  public final List<String> engine; // how to start it
  public final File files; // the app's own folder
  public final File cache; // likewise, for what may go at any time
  public final List<File> outsideWeights; // where a PC may have put the weights

  public Places(List<String> engine, File files, File cache, List<File> outsideWeights) {
    this.engine = Collections.unmodifiableList(new ArrayList<>(engine));
    this.files = files;
    this.cache = cache;
    this.outsideWeights = Collections.unmodifiableList(new ArrayList<>(outsideWeights));
  }
}
