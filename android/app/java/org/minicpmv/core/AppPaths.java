package org.minicpmv.core;

import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** The paths that the app uses on this system. */
public final class AppPaths {
  public final List<String> engine; // the engine's command line
  public final File files; // the app's private folder
  public final File cache; // for files that may be deleted at any time
  public final List<File> externalWeights; // where a PC may have pushed the weights

  public AppPaths(List<String> engine, File files, File cache, List<File> externalWeights) {
    this.engine = Collections.unmodifiableList(new ArrayList<>(engine));
    this.files = files;
    this.cache = cache;
    this.externalWeights = Collections.unmodifiableList(new ArrayList<>(externalWeights));
  }
}
