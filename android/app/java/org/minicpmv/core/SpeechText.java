package org.minicpmv.core;

import java.util.ArrayList;
import java.util.List;

/** Prepares a text for the system's speech. */
public final class SpeechText {
  private static final String ENDS = ".!?\n。！？；;";

  private SpeechText() {}

  /** Whether a text is rather Chinese than in letters. */
  public static boolean isChinese(String text) {
    int chinese = 0;
    int letters = 0;
    for (int i = 0; i < text.length(); i++) {
      Character.UnicodeBlock block = Character.UnicodeBlock.of(text.charAt(i));
      boolean isIdeograph = block == Character.UnicodeBlock.CJK_UNIFIED_IDEOGRAPHS;
      chinese += isIdeograph ? 1 : 0;
      letters += !isIdeograph && Character.isLetter(text.charAt(i)) ? 1 : 0;
    }
    return chinese * 3 > letters; // an ideograph is about a syllable
  }

  /** Splits a text into parts of limited length, at the ends of sentences as far as possible. */
  public static List<String> split(String text, int limit) {
    List<String> parts = new ArrayList<>();
    int begin = 0;
    while (text.length() - begin > limit) {
      int end = begin + limit;
      while (end > begin + limit / 2 && ENDS.indexOf(text.charAt(end - 1)) < 0) {
        end--;
      }
      if (ENDS.indexOf(text.charAt(end - 1)) < 0) {
        end = begin + limit;
        while (end > begin + limit / 2 && !Character.isWhitespace(text.charAt(end - 1))) {
          end--;
        }
        end = Character.isWhitespace(text.charAt(end - 1)) ? end : begin + limit;
      }
      if (Character.isHighSurrogate(text.charAt(end - 1))) {
        end--;
      }
      parts.add(text.substring(begin, end));
      begin = end;
    }
    parts.add(text.substring(begin));
    return parts;
  }
}
