package org.minicpmv.api;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Access control: the token, and the addresses that browsers send.
 *
 * <p>Any page in a browser on this phone can send requests here, and so can a foreign name that
 * resolves to 127.0.0.1 (DNS rebinding). So Host and Origin must be this server's own. The rules
 * are those of `runtime/http/guard.py`.
 */
final class Guard {
  private static final String LOOPBACK = "127.0.0.1";
  private static final Pattern ADDRESS =
      Pattern.compile("(\\[[0-9a-f:.]+\\]|[^\\[\\]:/@\\s]+?)\\.?(?::([0-9]{1,5}))?");
  private static final Pattern LOOPBACK_6 = // ::1, in any spelling
      Pattern.compile("\\[(?:(?:0{1,4}:){0,6}:|(?:0{1,4}:){7})0{0,3}1\\]");
  private static final List<String> NAMES = Arrays.asList(LOOPBACK, "localhost", "[::1]");
  private static final List<String> OWN_SITES = Arrays.asList("same-origin", "none");
  private static final String SCHEME = "bearer";

  private final byte[] token;

  Guard(String token) {
    this.token = token.getBytes(StandardCharsets.ISO_8859_1);
  }

  /** Refuses a request of a foreign page, or without the token. */
  void check(HttpRequest request) throws ApiError {
    String foreign = foreign(request);
    if (foreign != null) {
      throw new ApiError(403, "foreign_request", null, foreign);
    }
    String[] given = request.field("authorization", "").split(" ", 2);
    byte[] key = (given.length < 2 ? "" : given[1].trim()).getBytes(StandardCharsets.ISO_8859_1);
    boolean isRight = MessageDigest.isEqual(key, token); // takes as long for any wrong one
    if (!isRight || !given[0].toLowerCase(Locale.ROOT).equals(SCHEME)) {
      throw new ApiError(
          401, "invalid_api_key", null,
          "the token is missing or wrong; expected `Authorization: Bearer TOKEN`, with the token "
              + "that the app shows in its settings");
    }
  }

  /** Returns why a request is not for this server or comes from a page; null if neither. */
  private static String foreign(HttpRequest request) {
    List<String> hosts = request.all("host");
    String[] host = hosts.size() == 1 ? address(hosts.get(0)) : null;
    if (host == null || !NAMES.contains(host[0])) {
      return "the Host header does not name this server";
    }
    for (String origin : request.all("origin")) {
      if (!isOwn(origin, host)) {
        return "the request comes from another page";
      }
    }
    if (!OWN_SITES.contains(request.field("sec-fetch-site", "none"))) {
      return "the request comes from another site";
    }
    return null;
  }

  private static boolean isOwn(String origin, String[] host) {
    String[] parts = origin.toLowerCase(Locale.ROOT).split("://", 2);
    String[] asking = parts.length < 2 ? null : address(parts[1]);
    boolean isHttp = parts[0].equals("http") || parts[0].equals("https");
    if (asking == null || !isHttp || !asking[0].equals(host[0])) {
      return false;
    }
    String usual = parts[0].equals("http") ? "80" : "443";
    String port = host[1] == null ? usual : host[1];
    return port.equals(asking[1] == null ? usual : asking[1]);
  }

  /** Returns an address's name and port (null: the default); null if it is no address. */
  private static String[] address(String text) {
    Matcher matcher = ADDRESS.matcher(text.toLowerCase(Locale.ROOT));
    if (!matcher.matches()) {
      return null;
    }
    String name = matcher.group(1);
    String port = matcher.group(2);
    return new String[] {
      LOOPBACK_6.matcher(name).matches() ? "[::1]" : name,
      port == null ? null : String.valueOf(Integer.parseInt(port)),
    };
  }
}
