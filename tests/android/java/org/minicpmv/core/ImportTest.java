package org.minicpmv.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.FilterInputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.json.JSONObject;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;

/** An import of weights that breaks off, and goes on. */
public final class ImportTest {
  private static final int SIZE = 3 << 20;
  private static final int BREAK = (1 << 20) + 1000; // bytes that arrive before the break
  private static final int SPARE = 64 << 20;
  private static final String NAME = "content://files/1";

  private final byte[] content = new byte[SIZE];
  private final List<String> stages = new ArrayList<>();
  private final Progress progress =
      new Progress() {
        @Override
        public void onProgress(String stage, long done, long total) {
          stages.add(stage + " " + done + "/" + total);
        }
      };
  private Fixture app;

  @Before
  public void setUp() throws Exception {
    app = new Fixture();
    new Random(1).nextBytes(content);
  }

  @After
  public void tearDown() {
    app.close();
  }

  /** A file that counts what is read of it, and can break off. */
  private static final class Source extends ByteArrayInputStream {
    private final int end;
    int bytes;

    Source(byte[] content, int end) {
      super(content);
      this.end = end;
    }

    @Override
    public int read(byte[] target, int offset, int length) {
      if (pos == end) {
        return -1;
      }
      int count = super.read(target, offset, Math.min(length, end - pos));
      bytes += count;
      return count;
    }
  }

  /** A file on a disk that fails. */
  private static final class BrokenSource extends FilterInputStream {
    private final RuntimeException death; // null: an I/O error
    private long rest;

    BrokenSource(byte[] content, long end, RuntimeException death) {
      super(new ByteArrayInputStream(content));
      this.rest = end;
      this.death = death;
    }

    @Override
    public int read(byte[] target, int offset, int length) throws IOException {
      if (rest == 0 && death != null) {
        throw death;
      } else if (rest == 0) {
        throw new IOException("the disk is gone");
      }
      int count = super.read(target, offset, (int) Math.min(length, rest));
      rest -= count;
      return count;
    }
  }

  private Weights weights(byte[] wanted, long free) throws Exception {
    JSONObject record = Json.object("size", wanted.length, "sha256", Fixture.sha256(wanted));
    File folder = new StorageTest.LimitedFolder(app.folder, free);
    return new Weights(folder, Collections.<File>emptyList(), record);
  }

  private Weights weights() throws Exception {
    return weights(content, Long.MAX_VALUE / 2);
  }

  /** Imports from a source that breaks off; checks what the user is told. */
  private void breakOff() throws Exception {
    try {
      weights().importFrom(
          new BrokenSource(content, BREAK, null), SIZE, NAME, progress, new CancelToken());
      fail();
    } catch (EngineException e) {
      assertEquals(EngineException.FILE_ERROR, e.code());
      assertEquals("the weights could not be copied: the disk is gone", e.getMessage());
    }
    assertEquals(BREAK, weights().copied());
    stages.clear();
  }

  /** Imports the whole weights; checks how many bytes of the source were read for that. */
  private void assertCopies(int expected, String name) throws Exception {
    Source source = new Source(content, SIZE);
    weights().importFrom(source, SIZE, name, progress, new CancelToken());
    assertEquals(expected, source.bytes);
    File own = weights().find();
    assertArrayEquals(content, Files.readAllBytes(own.toPath()));
    assertTrue(weights().isVerified(own));
    assertNothingPartial();
  }

  private void assertNothingPartial() {
    for (String name : app.folder.list()) {
      assertFalse(name, name.startsWith(Weights.PARTIAL));
    }
    assertTrue(app.folder.isDirectory());
  }

  private File partial() {
    return new File(app.folder, Weights.PARTIAL);
  }

  @Test
  public void theSameFileContinues() throws Exception {
    breakOff();
    assertCopies(SIZE - BREAK, NAME);
    assertEquals(
        Arrays.asList(
            "verify 0/" + BREAK, "verify " + BREAK + "/" + BREAK,
            "import " + BREAK + "/" + SIZE, "import " + SIZE + "/" + SIZE),
        stages);
  }

  @Test
  public void anotherFileStartsAnew() throws Exception {
    breakOff();
    assertCopies(SIZE, "content://files/2");
  }

  @Test
  public void whatWasWrittenWithoutARecordIsNotTrusted() throws Exception {
    breakOff();
    Files.write(partial().toPath(), new byte[1000], StandardOpenOption.APPEND);
    assertCopies(SIZE - BREAK, NAME);
  }

  @Test
  public void aDamagedPartStartsAnew() throws Exception {
    breakOff();
    byte[] found = Files.readAllBytes(partial().toPath());
    found[100]++;
    Files.write(partial().toPath(), found);
    assertCopies(SIZE, NAME);
  }

  @Test
  public void aLostPartStartsAnew() throws Exception {
    breakOff();
    Files.write(partial().toPath(), new byte[10]);
    assertEquals(0, weights().copied());
    assertCopies(SIZE, NAME);
  }

  @Test
  public void aKilledAppContinuesFromTheLatestRecord() throws Exception {
    byte[] large = new byte[66 << 20]; // there is a record every 64 MiB
    Weights weights = weights(large, Long.MAX_VALUE / 2);
    try {
      RuntimeException death = new IllegalStateException("killed");
      weights.importFrom(
          new BrokenSource(large, 65 << 20, death), large.length, NAME, progress,
          new CancelToken());
      fail();
    } catch (IllegalStateException e) {
      assertEquals(65 << 20, partial().length());
    }
    Source source = new Source(large, large.length);
    weights(large, Long.MAX_VALUE / 2)
        .importFrom(source, large.length, NAME, progress, new CancelToken());
    assertEquals(2 << 20, source.bytes);
    assertEquals(large.length, weights.find().length());
    assertNothingPartial();
  }

  @Test
  public void aPartOfOtherWeightsIsDeleted() throws Exception {
    breakOff();
    byte[] other = new byte[SIZE];
    try {
      weights(other, SPARE).find(); // the app was updated
      fail();
    } catch (EngineException e) {
      assertEquals(EngineException.NO_WEIGHTS, e.code());
    }
    assertNothingPartial();
  }

  @Test
  public void aPartIsDeletedWhenThereAreWeights() throws Exception {
    assertCopies(SIZE, NAME);
    breakOff();
    weights().find();
    assertNothingPartial();
  }

  @Test
  public void aFileThatChangedIsRefusedAndForgotten() throws Exception {
    breakOff();
    byte[] other = content.clone();
    other[SIZE - 1]++;
    try {
      weights().importFrom(new Source(other, SIZE), SIZE, NAME, progress, new CancelToken());
      fail();
    } catch (EngineException e) {
      assertEquals(EngineException.DAMAGED_WEIGHTS, e.code());
    }
    assertNothingPartial();
  }

  @Test
  public void aFileThatEndsEarlyContinuesIfItsSizeIsKnown() throws Exception {
    for (int length : new int[] {-1, SIZE}) {
      try {
        weights().importFrom(
            new Source(content, BREAK), length, NAME, progress, new CancelToken());
        fail();
      } catch (EngineException e) {
        boolean isKnown = length > 0;
        assertEquals(
            isKnown ? EngineException.FILE_ERROR : EngineException.WRONG_WEIGHTS, e.code());
        assertTrue(
            e.getMessage(),
            e.getMessage().contains("the file ended after " + BREAK + " of " + SIZE + " bytes"));
        assertEquals(isKnown ? BREAK : 0, weights().copied());
        assertEquals(isKnown, partial().exists());
      }
    }
    assertCopies(SIZE - BREAK, NAME);
  }

  @Test
  public void whatIsCopiedNeedsNoFreeSpace() throws Exception {
    breakOff();
    long needed = SIZE - BREAK + SPARE;
    try {
      weights(content, needed - 1).requireSpace(SIZE);
      fail();
    } catch (EngineException e) {
      assertEquals(EngineException.NO_SPACE, e.code());
      assertEquals("65 MiB are free; a copy of the weights needs 1 MiB more", e.getMessage());
    }
    weights(content, needed).requireSpace(SIZE);
    assertEquals(BREAK, weights().copied());
  }

  @Test
  public void theUserIsToldAndContinues() throws Exception {
    app.start();
    assertFalse(app.awaitIdle().getJSONObject("bundle").has("copied_bytes"));
    int size = Fixture.WEIGHTS.length;
    app.importStream(new BrokenSource(Fixture.WEIGHTS, 7, null), size, NAME);
    assertEquals("file_error", app.await("error").getString("code"));
    JSONObject state = app.awaitIdle();
    assertEquals("no_weights", state.getJSONObject("problem").getString("code"));
    assertEquals(7, state.getJSONObject("bundle").getInt("copied_bytes"));
    app.close(); // and the process ends
    state = app.start().awaitIdle();
    assertEquals(7, state.getJSONObject("bundle").getInt("copied_bytes"));
    Source source = new Source(Fixture.WEIGHTS, size);
    app.importStream(source, size, NAME);
    do {
      state = app.awaitIdle();
    } while (!state.has("model"));
    assertEquals(size - 7, source.bytes);
    assertFalse(state.getJSONObject("bundle").has("copied_bytes"));
  }
}
