package org.minicpmv.api;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The head of an HTTP/1.1 request. What the standard leaves to the server's mercy is refused. */
final class HttpRequest {
  private static final String TOKEN = "[\\w!#$%&'*+.^`|~-]+";
  private static final Pattern LINE =
      Pattern.compile("(" + TOKEN + ") (/[!-~]*) HTTP/1\\.([01])");
  private static final Pattern FIELD =
      Pattern.compile("(" + TOKEN + "):[ \t]*([ \t!-~\u0080-\u00ff]*?)[ \t]*");

  final String method;
  final String path; // without a query
  final boolean keepsAlive; // the connection may carry another request
  final boolean isOld; // HTTP/1.0: no chunks
  final long length; // bytes of the body
  private final Map<String, List<String>> fields = new HashMap<>();

  /** @param head without the empty line that ends it */
  HttpRequest(byte[] head) throws ApiError {
    String[] lines = new String(head, StandardCharsets.ISO_8859_1).split("\r\n", -1);
    Matcher first = LINE.matcher(lines[0]);
    if (!first.matches()) {
      throw bad("expected a line such as GET /v1/models HTTP/1.1");
    }
    method = first.group(1);
    path = first.group(2).split("[?#]", 2)[0];
    isOld = first.group(3).equals("0");
    for (int i = 1; i < lines.length; i++) {
      Matcher field = FIELD.matcher(lines[i]);
      if (!field.matches()) {
        throw bad("header line " + i + " is invalid");
      }
      String name = field.group(1).toLowerCase(Locale.ROOT);
      if (!fields.containsKey(name)) {
        fields.put(name, new ArrayList<String>());
      }
      fields.get(name).add(field.group(2));
    }
    if (fields.containsKey("transfer-encoding")) {
      throw new ApiError(
          411, "length_required", null, "send the body with Content-Length, not in chunks");
    }
    length = readLength();
    String connection = field("connection", "").toLowerCase(Locale.ROOT);
    keepsAlive = !isOld && !connection.contains("close");
  }

  /** Returns all values of a header field. */
  List<String> all(String name) {
    List<String> values = fields.get(name);
    return values == null ? Collections.<String>emptyList() : values;
  }

  /** Returns a header field's first value. */
  String field(String name, String otherwise) {
    List<String> values = all(name);
    return values.isEmpty() ? otherwise : values.get(0);
  }

  /** Returns the body's media type, without its parameters. */
  String mediaType() {
    return field("content-type", "").split(";", 2)[0].trim().toLowerCase(Locale.ROOT);
  }

  /** Whether the client waits for the server's consent before it sends the body. */
  boolean awaitsConsent() {
    return field("expect", "").equalsIgnoreCase("100-continue") && length > 0;
  }

  private long readLength() throws ApiError {
    List<String> values = all("content-length");
    if (values.isEmpty()) {
      return 0;
    }
    if (values.size() > 1 || !values.get(0).matches("[0-9]{1,15}")) {
      throw bad("Content-Length is not one number");
    }
    return Long.parseLong(values.get(0));
  }

  private static ApiError bad(String what) {
    return new ApiError(400, "invalid_http", null, "this is no HTTP request: " + what);
  }
}
