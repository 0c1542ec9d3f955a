package org.minicpmv.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import org.json.JSONObject;
import org.junit.After;
import org.junit.Assume;
import org.junit.Before;
import org.junit.Test;
import org.minicpmv.desktop.DesktopPictureDecoder;

/** Full storage: writes to `/dev/full` fail as they do on a full phone. */
public final class StorageTest {
  private static final Path FULL = new File("/dev/full").toPath();
  private static final int SPARE = 64 << 20;
  private static final Progress QUIET =
      new Progress() {
        @Override
        public void onProgress(String stage, long done, long total) {}
      };

  private Fixture app;

  @Before
  public void setUp() throws Exception {
    Assume.assumeTrue(Files.exists(FULL));
    app = new Fixture();
  }

  @After
  public void tearDown() {
    if (app != null) {
      app.close();
    }
  }

  /** Throws the exception of a write to full storage. */
  private static void failFull() throws IOException {
    Files.write(FULL, new byte[1]);
  }

  /** Makes the app's next write to this file fail. */
  private static void fill(File partial) throws IOException {
    Files.createSymbolicLink(partial.toPath(), FULL);
  }

  /** A folder on storage with this many bytes free. */
  static final class LimitedFolder extends File {
    private static final long serialVersionUID = 1;
    private final long free;

    LimitedFolder(File folder, long free) {
      super(folder.getPath());
      this.free = free;
    }

    @Override
    public long getUsableSpace() {
      return free;
    }
  }

  private static final class UnreadStream extends InputStream {
    @Override
    public int read() {
      throw new AssertionError("an import started that cannot succeed");
    }
  }

  private Weights weights(long free) throws Exception {
    JSONObject record =
        Json.object("size", Fixture.WEIGHTS.length, "sha256", Fixture.sha256(Fixture.WEIGHTS));
    return new Weights(new LimitedFolder(app.folder, free), Collections.<File>emptyList(), record);
  }

  @Test
  public void anImportThatDoesNotFitIsNotStarted() throws Exception {
    try {
      weights(SPARE).importFrom(new UnreadStream(), -1, "file", QUIET, new CancelToken());
      fail();
    } catch (EngineException e) {
      assertEquals(EngineException.NO_SPACE, e.code());
      assertEquals("64 MiB are free; a copy of the weights needs 1 MiB more", e.getMessage());
    }
    assertEquals(0, app.folder.list().length);
  }

  @Test
  public void weightsOfAnotherBundleAreDeletedForSpaceAndUsableOnesStay() throws Exception {
    File own = new File(app.folder, Weights.NAME);
    Files.write(own.toPath(), Fixture.WEIGHTS);
    try {
      weights(SPARE).importFrom(new UnreadStream(), -1, "file", QUIET, new CancelToken());
      fail();
    } catch (EngineException e) {
      assertEquals(own, weights(SPARE).find());
    }
    Files.write(own.toPath(), new byte[1000]); // the app was updated in the meantime
    weights(SPARE).importFrom(
        new ByteArrayInputStream(Fixture.WEIGHTS), -1, "file", QUIET, new CancelToken());
    assertArrayEquals(Fixture.WEIGHTS, Files.readAllBytes(own.toPath()));
  }

  @Test
  public void anImportThatFillsStorageLeavesTheOldModel() throws Exception {
    app.ready();
    File folder = new File(app.files, "bundle");
    fill(new File(folder, Weights.PARTIAL));
    app.importStream(new ByteArrayInputStream(Fixture.WEIGHTS), -1, "file");
    JSONObject error = app.await("error");
    assertEquals("no_space", error.getString("code"));
    assertEquals("the weights could not be copied: storage is full", error.getString("message"));
    assertFalse(Files.isSymbolicLink(new File(folder, Weights.PARTIAL).toPath()));
    assertTrue(app.awaitIdle().has("model"));
    app.say("do", "send", "text", "still there");
    assertEquals("1: still there", app.awaitAnswer().getJSONArray("turns").getJSONObject(1)
        .getString("text"));
  }

  @Test
  public void withoutAModelTheStartScreenReportsFullStorage() throws Exception {
    app.start().awaitIdle();
    fill(new File(app.files, "bundle/" + Weights.PARTIAL));
    app.importStream(new ByteArrayInputStream(Fixture.WEIGHTS), -1, "file");
    app.await("error");
    JSONObject problem = app.awaitIdle().getJSONObject("problem");
    assertEquals("no_space", problem.getString("code"));
    app.say("do", "import"); // the user freed space
    while (!app.awaitIdle().has("model")) {
      continue;
    }
  }

  @Test
  public void aPictureThatFillsStorageLeavesNothing() throws Exception {
    app.ready();
    app.assistant.addPicture(
        new InputStream() {
          private int count;

          @Override
          public int read() throws IOException {
            if (++count > 9) {
              failFull();
            }
            return 'x';
          }

          @Override
          public int read(byte[] target, int offset, int length) throws IOException {
            target[offset] = (byte) read();
            return 1;
          }
        });
    JSONObject error = app.await("error");
    assertEquals("no_space", error.getString("code"));
    assertEquals("storage is full", error.getString("message"));
    assertEquals(0, new File(app.files, "pictures").list().length);
  }

  @Test
  public void aPreviewThatFillsStorageLeavesNothing() throws Exception {
    app.decoder = new FullStorageDecoder();
    app.ready().say("do", "picture", "camera", false);
    assertEquals("no_space", app.await("error").getString("code"));
    assertEquals(0, new File(app.files, "pictures").list().length);
  }

  @Test
  public void pixelsThatFillStorageLeaveThePictureUsable() throws Exception {
    FullStorageDecoder decoder = new FullStorageDecoder();
    decoder.isFull = false;
    app.decoder = decoder;
    app.ready().say("do", "picture", "camera", false);
    String picture = app.await("picture").getJSONObject("picture").getString("id");
    decoder.isFull = true;
    app.say("do", "send", "text", "what", "picture", picture);
    JSONObject error = app.await("error");
    assertEquals("no_space", error.getString("code"));
    assertTrue(app.awaitIdle().has("model"));
    assertFalse(new File(app.folder, "cache/picture.pixels").exists());
    decoder.isFull = false;
    app.say("do", "send", "text", "again", "chat", error.getString("chat"), "from", 0,
        "picture", picture);
    assertEquals("1: again seeing 5x3", app.awaitAnswer().getJSONArray("turns").getJSONObject(1)
        .getString("text"));
  }

  @Test
  public void aChatThatCannotBeSavedIsStillAnswered() throws Exception {
    app.ready().say("do", "send", "text", "one");
    String id = app.awaitAnswer().getString("id");
    app.awaitIdle();
    File file = new File(app.files, "chats/" + id + ".json");
    byte[] before = Files.readAllBytes(file.toPath());
    fill(new File(file.getPath() + ".partial"));
    app.say("do", "send", "text", "slow", "chat", id);
    JSONObject error = app.await("error");
    assertEquals("no_space", error.getString("code"));
    assertEquals("the chat could not be saved: storage is full", error.getString("message"));
    assertArrayEquals(before, Files.readAllBytes(file.toPath()));
    app.await("text");
    app.say("do", "stop"); // then it can be saved: there is space
    assertEquals(4, app.awaitAnswer().getJSONArray("turns").length());
    app.awaitIdle();
    assertTrue(FileTools.read(file).contains("bla"));
    assertEquals(1, new File(app.files, "chats").list().length);
  }

  @Test
  public void aDraftThatCannotBeSavedDoesNotStopTheQuestion() throws Exception {
    app.ready();
    fill(new File(app.files, "draft.json.partial"));
    app.say("do", "draft", "text", "half");
    app.say("do", "send", "text", "one");
    assertEquals(2, app.awaitAnswer().getJSONArray("turns").length());
  }

  @Test
  public void aDamagedDraftIsAnEmptyOne() throws Exception {
    for (String content : new String[] {"", "[]", "{\"text\": 3, \"chat\": 4}", "{\"text\":"}) {
      File file = new File(app.folder, "draft.json");
      Files.write(file.toPath(), content.getBytes(StandardCharsets.UTF_8));
      Draft draft = new Draft(file, new Log(new File(app.folder, "log.txt")));
      assertEquals("", draft.text());
      assertEquals(null, draft.chat());
      draft.setText("new");
      assertEquals("new", new Draft(file, new Log(new File(app.folder, "log.txt"))).text());
    }
  }

  @Test
  public void anAppThatCannotUnpackItsFilesReportsIt() throws Exception {
    Files.createDirectories(new File(app.files, "bundle").toPath());
    fill(new File(app.files, "bundle/generation.json.partial"));
    app.placeWeights();
    JSONObject state = app.start().awaitIdle();
    assertEquals("no_space", state.getJSONObject("problem").getString("code"));
    app.say("do", "retry");
    while (!app.awaitIdle().has("model")) {
      continue;
    }
  }

  /** Runs out of storage in the middle of a file. */
  private static final class FullStorageDecoder implements PictureDecoder {
    private final DesktopPictureDecoder decoder = new DesktopPictureDecoder();
    volatile boolean isFull = true;

    @Override
    public boolean decodesHeic() {
      return decoder.decodesHeic();
    }

    @Override
    public int[] preview(PictureFile source, File jpeg) throws IOException {
      fillUp(jpeg);
      return decoder.preview(source, jpeg);
    }

    @Override
    public void pixels(PictureFile source, File output, Progress progress, CancelToken cancel)
        throws IOException, EngineException {
      fillUp(output);
      decoder.pixels(source, output, progress, cancel);
    }

    private void fillUp(File file) throws IOException {
      if (isFull) {
        Files.write(file.toPath(), new byte[9]);
        failFull();
      }
    }
  }
}
