package org.minicpmv.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.util.Arrays;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Test;

/** The classes that need no engine. */
public final class LogicTest {
  private static Chat chat(Turn... turns) {
    Chat chat = new Chat("id", 0);
    for (Turn turn : turns) {
      if (turn.isUser()) {
        chat.ask(chat.turns().size(), turn, 1);
      } else {
        chat.answer(turn, 2);
      }
    }
    return chat;
  }

  private static Turn question(String text) {
    return Turn.question(text, null);
  }

  private static Turn answer(String text) {
    return Turn.answer(text, "eos", null);
  }

  private static String messages(Chat chat) throws Exception {
    StringBuilder text = new StringBuilder();
    JSONArray messages = chat.messages();
    for (int i = 0; i < messages.length(); i++) {
      JSONObject message = messages.getJSONObject(i);
      text.append(message.getString("role").charAt(0)).append(message.getString("content"));
    }
    return text.toString();
  }

  @Test
  public void theConversationBeginsAtTheLatestPicture() throws Exception {
    Chat chat =
        chat(
            Turn.question("1", "a"), answer("2"), question("3"), answer("4"),
            Turn.question("5", "b"), answer("6"), question("7"));
    assertEquals("u5a6u7", messages(chat));
    assertEquals("b", chat.picture());
    assertEquals("u1a2u3", messages(chat(Turn.question("1", "a"), answer("2"), question("3"))));
    assertNull(chat(question("1")).picture());
  }

  @Test
  public void unansweredQuestionsAreSkipped() throws Exception {
    assertEquals("u3", messages(chat(question("1"), question("2"), question("3"))));
    Chat chat = chat(question("1"), question("2"), answer("3"), question("4"));
    assertEquals("u2a3u4", messages(chat));
    assertEquals("u3", messages(chat(question("1"), answer(""), question("3"))));
    Chat late = chat(Turn.question("1", "a"), question("2"));
    assertEquals("u2", messages(late));
    assertEquals("a", late.picture());
  }

  @Test
  public void titlesAreShortAndDoNotSplitCharacters() {
    assertEquals("one two", chat(question(" one\n two ")).title());
    String title = chat(question(new String(new char[200]).replace("\0", "\uD83D\uDE00"))).title();
    assertEquals(61, title.codePointCount(0, title.length()));
  }

  @Test
  public void chatsSurviveARoundTrip() throws Exception {
    Turn question = Turn.question("图 \u2028 \uD83D\uDE00", "p");
    Chat chat = chat(question, Turn.answer("a", "length", new JSONObject()));
    JSONObject json = chat.toJson();
    assertEquals(json.toString(), Chat.fromJson("id", json).toJson().toString());
    File folder = Files.createTempDirectory("chats").toFile();
    Log log = new Log(File.createTempFile("log", ""));
    ChatStore store = new ChatStore(folder, log);
    Chat kept = store.create(1);
    kept.ask(0, question("x"), 2);
    store.save(kept);
    ChatStore again = new ChatStore(folder, log);
    assertTrue(again.isComplete());
    assertEquals(kept.toJson().toString(), again.get(kept.id).toJson().toString());
  }

  @Test
  public void damagedChatsAreLeftUntouched() throws Exception {
    String deep = new String(new char[100_000]).replace("\0", "[");
    String digits = new String(new char[5000]).replace("\0", "9");
    for (String content : new String[] {
      "", "{", "[1]", "null", "\u00ff", deep, "{\"turns\": []}",
      "{\"turns\": {}, \"changed\": 1}", "{\"turns\": [], \"changed\": 1e999}",
      "{\"turns\": [], \"changed\": NaN}", "{\"turns\": [], \"changed\": \"1\"}",
      "{\"turns\": [], \"changed\": true}", "{\"turns\": [], \"changed\": -1}",
      "{\"turns\": [], \"changed\": " + digits + "}",
      "{\"turns\": [], \"changed\": 99999999999999999}",
      "{\"turns\": [], \"changed\": 1}}", "{\"turns\": [1], \"changed\": 1}",
      "{\"turns\": [{\"role\": \"user\"}], \"changed\": 1}",
      "{\"turns\": [{\"role\": \"user\", \"text\": \"a\", \"picture\": 1}], \"changed\": 1}",
      "{\"turns\": [{\"role\": \"user\", \"text\": \"a\", \"stop\": {}}], \"changed\": 1}",
      "{\"turns\": [{\"role\": \"user\", \"text\": \"a\", \"speed\": 1}], \"changed\": 1}",
      "{\"turns\": [{\"role\": \"user\", \"text\": \"a\\ud800\"}], \"changed\": 1}",
    }) {
      File folder = Files.createTempDirectory("chats").toFile();
      File file = new File(folder, "bad.json");
      byte[] bytes = content.getBytes(content.equals("\u00ff") ? "ISO-8859-1" : "UTF-8");
      Files.write(file.toPath(), bytes);
      Log log = new Log(File.createTempFile("log", ""));
      ChatStore store = new ChatStore(folder, log);
      assertFalse(content, store.isComplete());
      assertNull(content, store.get("bad"));
      assertArrayEquals(content, bytes, Files.readAllBytes(file.toPath()));
      assertTrue(log.text().contains("bad.json cannot be read"));
    }
  }

  @Test
  public void unreadableFilesMakeTheStoreIncomplete() throws Exception {
    File folder = Files.createTempDirectory("chats").toFile();
    Log log = new Log(File.createTempFile("log", ""));
    Files.write(new File(folder, "half.json.partial").toPath(), new byte[] {'{'});
    assertTrue(new ChatStore(folder, log).isComplete());
    assertFalse(new File(folder, "half.json.partial").exists());
    assertTrue(new File(folder, "a.json").mkdir());
    assertFalse(new ChatStore(folder, log).isComplete());
    assertTrue(new File(folder, "a.json").delete());
    Files.write(new File(folder, "copy of a chat").toPath(), new byte[] {'{'});
    assertFalse(new ChatStore(folder, log).isComplete());
  }

  @Test
  public void onlyFilesAreReplaced() throws Exception {
    File folder = Files.createTempDirectory("files").toFile();
    File file = new File(folder, "file");
    File link = new File(folder, "link");
    FileTools.write(file, "old");
    Files.createSymbolicLink(link.toPath(), file.toPath());
    FileTools.write(link, "new");
    assertTrue(Files.isSymbolicLink(link.toPath()));
    assertEquals("new", FileTools.read(file));
    Files.createSymbolicLink(new File(folder, "device").toPath(), new File("/dev/null").toPath());
    Files.createSymbolicLink(new File(folder, "nowhere").toPath(), new File("/none").toPath());
    assertTrue(new File(folder, "folder").mkdir());
    for (String name : new String[] {"device", "nowhere", "folder"}) {
      try {
        FileTools.write(new File(folder, name), "text");
        fail(name);
      } catch (IOException e) {
        assertTrue(e.getMessage(), e.getMessage().contains("not a file, so it is not replaced"));
      }
    }
    assertEquals(5, folder.list().length);
  }

  @Test
  public void onlyThePageIsServed() {
    assertEquals("page/main.js", PageFiles.asset("/main.js"));
    assertEquals("text/javascript", PageFiles.type("page/main.js"));
    assertEquals("text/css", PageFiles.type("style.css"));
    assertEquals("text/html", PageFiles.type("index.html"));
    for (String path : new String[] {
      null, "", "/", "/../bundle/bundle.json", "/bundle/bundle.json", "/bundle.json", "/a/b.js",
      "/..js", "/MAIN.JS", "/main.js/", "/main.exe", "/%2e%2e/x.js",
    }) {
      assertNull(path, PageFiles.asset(path));
    }
    String id = "01234567-89ab-cdef-0123-456789abcdef";
    assertEquals(id, PageFiles.picture("/picture/" + id));
    assertNull(PageFiles.picture("/picture/../../chats/x"));
    assertNull(PageFiles.picture("/picture/" + id + ".json"));
    assertTrue(PageFiles.headers().get("Content-Security-Policy").startsWith("default-src 'none'"));
  }

  @Test
  public void anEngineIsRestartedUnlessItKeepsDying() {
    RestartPolicy policy = new RestartPolicy();
    assertTrue(policy.died(0));
    assertTrue(policy.died(1_000));
    assertFalse(policy.died(2_000));
    policy.reset();
    assertTrue(policy.died(3_000));
    assertTrue(policy.died(4_000));
    assertTrue(policy.died(1_000_000)); // the earlier deaths have expired
  }

  @Test
  public void settingsAreCheckedAndSaved() throws Exception {
    File folder = Files.createTempDirectory("settings").toFile();
    File file = new File(folder, "settings.json");
    Log log = new Log(new File(folder, "log"));
    JSONObject sample = new JSONObject("{\"sample\": {\"top_k\": 7}}");
    JSONObject given = Json.object("window", 300, "settings", sample);
    JSONObject ranges = Settings.readRanges(new Fixture());
    Settings settings = new Settings(file, given, ranges, log);
    assertEquals(300, settings.window());
    assertEquals(7, settings.sampling().getInt("top_k"));
    settings.choose(
        new JSONObject(
            "{\"temperature\": 0.5, \"top_k\": 1.5, \"window\": 1e9, \"language\": \"xx\","
                + " \"do_sample\": \"no\", \"unknown\": 1}"));
    settings = new Settings(file, given, ranges, log);
    assertEquals(0.5, settings.sampling().getDouble("temperature"), 0);
    assertEquals(7, settings.sampling().getInt("top_k"));
    assertEquals("system", settings.language());
    settings.choose(new JSONObject("{\"do_sample\": false, \"top_k\": 0}"));
    assertFalse(settings.sampling().has("temperature"));
    Files.write(file.toPath(), new byte[] {'['});
    assertEquals(300, new Settings(file, given, ranges, log).window());
    assertTrue(log.text().contains("settings"));
  }

  @Test
  public void theDefaultsAreThoseOfTheModel() throws Exception {
    Fixture phone = new Fixture();
    try (InputStream source = phone.configFile("generation.json")) {
      phone.carried.put("generation.json", FileTools.read(source));
    }
    JSONObject defaults = new BundleFiles(phone.files, phone).defaults();
    assertEquals(1024, defaults.getInt("window"));
    JSONObject sample = defaults.getJSONObject("settings").getJSONObject("sample");
    assertFalse(sample.has("repetition_penalty"));
    phone.carry(Fixture.WEIGHTS, new JSONObject("{\"slice_mode\": false}"));
    try (InputStream source = phone.configFile("generation.json")) {
      phone.carried.put("generation.json", FileTools.read(source));
    }
    defaults = new BundleFiles(phone.files, phone).defaults();
    assertEquals(2048, defaults.getInt("window"));
    sample = defaults.getJSONObject("settings").getJSONObject("sample");
    assertEquals(1.05, sample.getDouble("repetition_penalty"), 0);
  }

  @Test
  public void eventsAreValidInOldScripts() {
    String text = Json.forScript(Json.object("text", "a\u2028b\u2029c"));
    assertFalse(text.contains("\u2028"));
    assertEquals("{\"text\":\"a\\u2028b\\u2029c\"}", text);
  }

  @Test
  public void theLogStaysSmall() throws Exception {
    File file = new File(Files.createTempDirectory("log").toFile(), "log");
    Log log = new Log(file);
    String line = new String(new char[10_000]).replace('\0', 'x');
    for (int i = 0; i < 60; i++) {
      log.add(line);
    }
    assertTrue(log.text().length() < 300_000);
    log.add("the last");
    assertTrue(log.text().endsWith("the last\n"));
  }

  @Test
  public void theSpeedIsThatOfTheLastSeconds() {
    long second = 1_000_000_000L;
    Rate rate = new Rate();
    assertEquals(0, rate.perSecond(), 0);
    rate.add("import", 0, 0);
    rate.add("import", second / 2, 50);
    assertEquals(0, rate.perSecond(), 0); // too early
    rate.add("import", 2 * second, 200);
    assertEquals(100, rate.perSecond(), 1e-9);
    for (int i = 3; i <= 20; i++) { // it becomes slower
      rate.add("import", i * second, 200 + (i - 2) * 10);
    }
    assertEquals(10, rate.perSecond(), 1e-9);
    rate.add("import", 60 * second, 780); // a long time without a report
    assertEquals(10, rate.perSecond(), 1e-9);
    rate.add("verify", 61 * second, 0); // another stage
    assertEquals(0, rate.perSecond(), 0);
  }

  @Test
  public void longTextsAreSpokenInParts() {
    assertEquals(Arrays.asList("short"), SpeechText.split("short", 10));
    assertEquals(
        Arrays.asList("One. Two.", " Three ", "four five"),
        SpeechText.split("One. Two. Three four five", 11));
    assertEquals(Arrays.asList("一二。", "三四五六", "七"), SpeechText.split("一二。三四五六七", 4));
    String pair = new String(Character.toChars(0x1f600));
    assertEquals(Arrays.asList("abc", pair + "d"), SpeechText.split("abc" + pair + "d", 4));
    assertEquals(Arrays.asList(""), SpeechText.split("", 4));
  }

  @Test
  public void theVoiceFitsTheText() {
    assertTrue(SpeechText.isChinese("这是红色的 MiniCPM。"));
    assertFalse(SpeechText.isChinese("The sign says 红."));
    assertFalse(SpeechText.isChinese("12:30"));
  }
}
