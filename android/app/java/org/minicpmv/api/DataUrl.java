package org.minicpmv.api;

import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** A picture in a request: a data URL (RFC 2397), as clients make them. */
final class DataUrl {
  static final int PICTURE_LIMIT = 16 << 20; // bytes of a picture's file
  private static final int SHOWN = 40; // characters of an address in a message
  private static final List<String> DETAILS = Arrays.asList("auto", "low", "high");
  private static final Pattern START =
      Pattern.compile("\\s*data:[^,]{0,200}?;\\s*base64\\s*,", Pattern.CASE_INSENSITIVE);

  final boolean isLow; // the detail that is asked for
  private final String url;
  private final int start; // of its data
  private final String where;

  /**
   * @param image the field `image_url`: an object, or just the address
   * @param where position of the part in the request
   */
  DataUrl(Object image, String where) throws ApiError {
    Map<String, Object> fields = Fields.object(image);
    Object address = fields == null ? image : fields.get("url");
    String name = where + ".image_url";
    if (!(address instanceof String)) {
      throw ApiError.wrong(name, "expected {\"url\": \"data:image/…;base64,…\"}");
    }
    url = (String) address;
    Matcher matcher = START.matcher(url);
    if (!matcher.lookingAt()) {
      String shown = url.substring(0, Math.min(SHOWN, url.length()));
      throw ApiError.unsupported(
          name + ".url",
          "is " + Shown.of(shown) + "; this server fetches nothing: send data:image/…;base64,…");
    }
    start = matcher.end();
    this.where = where;
    Object detail = fields == null ? null : fields.get("detail");
    if (detail != null && !DETAILS.contains(detail)) {
      throw ApiError.wrong(
          name + ".detail", "is " + Shown.of(detail) + "; expected auto, low or high");
    }
    isLow = "low".equals(detail);
  }

  /** Returns the picture's file; its bytes tell the format. */
  byte[] content() throws ApiError {
    byte[] text = plain();
    if (text.length / 4L * 3 > PICTURE_LIMIT) {
      throw new ApiError(
          413, "picture_too_large", where,
          where + ": the picture is larger than " + (PICTURE_LIMIT >> 20) + " MiB");
    }
    try {
      return Base64.getDecoder().decode(text);
    } catch (IllegalArgumentException e) {
      throw noBase64();
    }
  }

  /**
   * Returns the Base64 as the decoder takes it: without white space and padding, `-` and `_` as `+`
   * and `/`, percent signs decoded.
   */
  private byte[] plain() throws ApiError {
    byte[] found = new byte[url.length() - start];
    int count = 0;
    for (int i = start; i < url.length(); i++) {
      char c = url.charAt(i);
      if (c == '%' && i + 2 < url.length()) {
        int high = Character.digit(url.charAt(i + 1), 16);
        int low = Character.digit(url.charAt(i + 2), 16);
        if (high < 0 || low < 0) {
          throw noBase64();
        }
        c = (char) (high << 4 | low);
        i += 2;
      }
      if (c > 0x7f) {
        throw noBase64();
      } else if (!Character.isWhitespace(c)) {
        found[count++] = (byte) (c == '-' ? '+' : c == '_' ? '/' : c);
      }
    }
    while (count > 0 && found[count - 1] == '=') {
      count--;
    }
    return Arrays.copyOf(found, count);
  }

  private ApiError noBase64() {
    return new ApiError(
        400, "invalid_picture", where, where + ": the picture is no base64");
  }
}
