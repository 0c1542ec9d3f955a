package org.minicpmv.core;

import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The files that the page may load, and how they are served. */
public final class PageFiles {
  public static final String ORIGIN = "https://app.local";
  public static final String START = ORIGIN + "/index.html";
  public static final int OLDEST_BROWSER = 64; // Chromium's version: ES2018 and ResizeObserver
  private static final Pattern BROWSER = Pattern.compile("Chrome/(\\d{1,6})");
  private static final String PICTURES = "/picture/";
  private static final Pattern NAME = Pattern.compile("/[a-z0-9_-]+\\.[a-z]+");
  private static final Pattern PICTURE = Pattern.compile("/picture/[0-9a-f-]{36}");
  private static final Map<String, String> TYPES = new HashMap<>();
  private static final Map<String, String> HEADERS;

  static {
    TYPES.put("html", "text/html");
    TYPES.put("css", "text/css");
    TYPES.put("js", "text/javascript");
    TYPES.put("svg", "image/svg+xml");
    TYPES.put("txt", "text/plain");
    Map<String, String> headers = new LinkedHashMap<>();
    headers.put(
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            + "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    headers.put("X-Content-Type-Options", "nosniff");
    headers.put("Cache-Control", "no-store");
    HEADERS = Collections.unmodifiableMap(headers);
  }

  private PageFiles() {}

  /** Returns Chromium's version in a user agent; -1 if it has none. */
  public static int browser(String userAgent) {
    Matcher match = BROWSER.matcher(String.valueOf(userAgent));
    return match.find() ? Integer.parseInt(match.group(1)) : -1;
  }

  /** Headers of every response. */
  public static Map<String, String> headers() {
    return HEADERS;
  }

  /** Returns the asset for a path, or null if there is none. */
  public static String asset(String path) {
    return path != null && NAME.matcher(path).matches() && type(path) != null
        ? "page" + path
        : null;
  }

  /** Returns the id of the picture that a path requests, or null. */
  public static String picture(String path) {
    return path != null && PICTURE.matcher(path).matches()
        ? path.substring(PICTURES.length())
        : null;
  }

  /** Returns the MIME type for a file name, or null if it is unknown. */
  public static String type(String name) {
    int dot = name.lastIndexOf('.');
    return TYPES.get(name.substring(dot + 1).toLowerCase(Locale.ROOT));
  }
}
