package org.minicpmv.core;

import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * The primary picture's stored size and orientation, from a HEIF file's boxes.
 *
 * <p>The boxes are authoritative; EXIF is informative only (ISO/IEC 23008-12, 6.5.10).
 */
final class Heif {
  private static final int PRIMARY = 0x7069746d; // pitm
  private static final int PROPERTIES = 0x69707270; // iprp
  private static final int CONTAINER = 0x6970636f; // ipco
  private static final int ASSOCIATION = 0x69706d61; // ipma
  private static final int SIZE = 0x69737065; // ispe
  private static final int ROTATION = 0x69726f74; // irot
  private static final int MIRROR = 0x696d6972; // imir
  private static final int LONG_SIZE = 1; // the box's real size follows as eight bytes
  private static final int MAX_ENTRIES = 10_000; // boxes or entries of one list

  final int width;
  final int height;
  final Orientation orientation;

  private Heif(int width, int height, Orientation orientation) {
    this.width = width;
    this.height = height;
    this.orientation = orientation;
  }

  /**
   * Reads the content of a file's `meta` box.
   *
   * @return null if it lacks the required boxes
   */
  static Heif read(byte[] content) {
    try {
      ByteBuffer meta = ByteBuffer.wrap(content);
      meta.getInt(); // version and flags
      ByteBuffer properties = find(meta.duplicate(), PROPERTIES);
      ByteBuffer primary = find(meta.duplicate(), PRIMARY);
      int version = primary.getInt() >>> 24;
      int item = version == 0 ? primary.getShort() & 0xffff : primary.getInt();
      List<Box> boxes = boxes(find(properties.duplicate(), CONTAINER));
      return of(boxes, associations(find(properties.duplicate(), ASSOCIATION), item));
    } catch (BufferUnderflowException | IndexOutOfBoundsException e) {
      return null;
    }
  }

  /** Applies a picture's properties in their order. */
  private static Heif of(List<Box> boxes, List<Integer> indices) {
    int width = 0;
    int height = 0;
    Orientation orientation = Orientation.UPRIGHT;
    for (int index : indices) {
      if (index == 0) {
        continue; // 0 means no property
      }
      Box box = boxes.get(index - 1);
      ByteBuffer content = box.content.duplicate();
      if (box.type == SIZE) {
        content.getInt(); // version and flags
        width = content.getInt();
        height = content.getInt();
      } else if (box.type == ROTATION) {
        for (int quarter = content.get() & 3; quarter > 0; quarter--) {
          orientation = orientation.then(Orientation.COUNTER_CLOCKWISE);
        }
      } else if (box.type == MIRROR) {
        boolean isAcross = (content.get() & 1) == 1;
        orientation =
            orientation.then(isAcross ? Orientation.MIRRORED : Orientation.UPSIDE_DOWN);
      }
    }
    return new Heif(width, height, orientation);
  }

  /** Lists the properties of an item as 1-based indices. */
  private static List<Integer> associations(ByteBuffer table, int item) {
    int head = table.getInt();
    boolean isWide = (head & 1) == 1; // two-byte indices
    List<Integer> found = new ArrayList<>();
    for (int entries = Math.min(table.getInt(), MAX_ENTRIES); entries > 0; entries--) {
      int id = head >>> 24 == 0 ? table.getShort() & 0xffff : table.getInt();
      for (int count = table.get() & 0xff; count > 0; count--) {
        int index = isWide ? table.getShort() & 0x7fff : table.get() & 0x7f;
        if (id == item) {
          found.add(index);
        }
      }
    }
    return found;
  }

  private static ByteBuffer find(ByteBuffer parent, int type) {
    for (Box box : boxes(parent)) {
      if (box.type == type) {
        return box.content.duplicate();
      }
    }
    throw new BufferUnderflowException();
  }

  /** Lists the complete boxes; the last one may be truncated. */
  private static List<Box> boxes(ByteBuffer parent) {
    List<Box> boxes = new ArrayList<>();
    while (parent.remaining() >= 8 && boxes.size() < MAX_ENTRIES) {
      long size = parent.getInt() & 0xffffffffL;
      int type = parent.getInt();
      long content = size == LONG_SIZE ? parent.getLong() - 16 : size - 8;
      if (content < 0 || content > parent.remaining()) {
        break; // extends to the end of the file, is truncated, or is invalid
      }
      ByteBuffer inside = parent.slice();
      inside.limit((int) content);
      boxes.add(new Box(type, inside));
      parent.position(parent.position() + (int) content);
    }
    return boxes;
  }

  private static final class Box {
    final int type;
    final ByteBuffer content;

    Box(int type, ByteBuffer content) {
      this.type = type;
      this.content = content;
    }
  }
}
