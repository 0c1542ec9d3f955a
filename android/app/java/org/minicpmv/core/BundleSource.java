package org.minicpmv.core;

import java.io.IOException;
import java.io.InputStream;

/** Where the bundle's files are packaged. */
public interface BundleSource {
  /** Opens one of the bundle's files. */
  InputStream bundleFile(String name) throws IOException;
}
