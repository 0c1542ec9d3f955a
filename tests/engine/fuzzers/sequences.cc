// Fuzzes sequences of requests to a server in this process: valid and invalid ones in any order,
// longer than the window, numbers out of range, cancels in the middle of an answer.
//
// MINICPMV_FUZZ_BUNDLE is the bundle's path. The input chooses the requests; a client sends them,
// reads the events, and aborts if the protocol is violated.
#include <fcntl.h>
#include <fuzzer/FuzzedDataProvider.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/engine/build_info.h"
#include "runtime/engine/cores.h"
#include "runtime/engine/cpu_features.h"
#include "runtime/engine/error.h"
#include "runtime/engine/fields.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/protocol.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/server.h"
#include "runtime/engine/thread_pool.h"

namespace minicpmv {
namespace {

namespace event = protocol::event;
namespace field = protocol::field;
using Clock = std::chrono::steady_clock;

constexpr size_t kLineLimit = 1 << 15;
constexpr int kMaxSteps = 12;
constexpr int kMaxBatch = 8;        // lines at once; with 16 queued, the queue stops reading
constexpr int64_t kMaxEvents = 40;  // of a request, before it is cancelled
constexpr int kQuietMs = 40;        // without an event, before it is cancelled
constexpr int kEndlessMs = 10'000;  // after a cancel

const char* const kNumbers[] = {
    "1",
    "2",
    "7",
    "0",
    "-1",
    "64",
    "20000",
    "2147483648",
    "4294967296",
    "1048577",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551616",
    "123456789012345678901234567890",
    "1e308",
    "1e999",
    "-1e999",
    "0.5",
    "1.0",
    "-0",
    "5e-324",
    "NaN",
    "null",
    "true",
    "\"1\"",
    "[]",
    "{}",
};
// Extreme int64 values, which hardly any field accepts.
const char* const kLarge[] = {"20000", "2147483648", "4294967296", "9223372036854775807"};
// Size of a buffer; the default of 256 MiB would be slow.
const char* const kSizes[] = {"1048576", "1048575", "1073741825", "9223372036854775808", "-1"};
const char* const kTexts[] = {
    "What colour?",
    "图片里有几个圆形？",
    "",
    " ",
    "<image>",
    "</image>",
    "<ref>cat</ref><box>1</box>",
    "<unk><s></s>",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\u0000",
    "a\\nb",
    "<用户>",
    "<AI>",
    "\xff",
};
const char* const kRoles[] = {"user", "assistant", "system", ""};
const char* const kPaths[] = {"picture", "row", "missing", ".", "saved", "output", ""};
const char* const kImages[] = {"0", "ffffffffffffffff", "10000000000000000", "", "x", "-1"};
const char* const kTaps[] = {"preprocess", "vision_embed", "vision_block", "vision_norm", "resampler",
                             "embed",      "layers",       "logits",       "none",        "cut"};
const char* const kOthers[] = {"reset",  "selfcheck", "profile",  "cancel",
                               "threads", "",          "tokenize", "load"};
const char* const kGarbage[] = {"",    "{",           "null",
                                "[1]", "{\"op\": 1}", "{\"op\": \"reset\"",
                                "x",   "\xff\xfe",    "{\"op\": \"cancel\", \"x\": 1}"};

constexpr char kQuestion[] =
    R"({"op": "chat", "messages": [{"role": "user", "content": "What?"}], "max_new_tokens": 1})";

[[noreturn]] void Break(const std::string& rule, const std::string& line) {
  std::fprintf(stderr, "violated: %s: %s\n", rule.c_str(), line.c_str());
  std::abort();
}

// Generates requests from an input.
class Requests {
 public:
  Requests(FuzzedDataProvider* input, std::string bundle)
      : input_(*input), bundle_(std::move(bundle)) {}

  bool done() const { return input_.remaining_bytes() == 0; }
  bool Flag() { return input_.ConsumeBool(); }
  bool Rarely() { return Below(8) == 7; }  // never once the input is exhausted
  int Below(int limit) { return input_.ConsumeIntegralInRange<int>(0, limit - 1); }

  // Returns a line with an id; the client fills in the name of the picture.
  std::string Next(int64_t id, const std::string& image) {
    image_ = image;
    const std::string fields = Fields();
    if (fields.empty()) return One(kGarbage);
    return "{\"id\": " + std::to_string(id) + ", " + fields + "}";
  }

 private:
  template <typename T, size_t N>
  std::string One(T (&choices)[N]) {
    return choices[Below(static_cast<int>(N))];
  }
  std::string Quoted(const std::string& text) { return "\"" + text + "\""; }
  std::string Number() {
    if (Rarely()) return One(kNumbers);
    return Rarely() ? One(kLarge) : std::to_string(1 + Below(60));
  }
  std::string Op(const char* op) { return "\"op\": \"" + std::string(op) + "\""; }
  std::string With(const char* name, const std::string& value) {
    return ", \"" + std::string(name) + "\": " + value;
  }
  std::string Perhaps(const char* name, const std::string& value) {
    return Below(4) == 3 ? With(name, value) : "";
  }

  std::string Fields() {
    switch (Below(18)) {
      case 8:
      case 9:
        return Op("image") + With("path", Quoted(Rarely() ? One(kPaths) : "picture")) +
               Perhaps("max_slices", Number());
      case 10:
        return Op("save_image") + With("path", Quoted(Rarely() ? One(kPaths) : "saved")) +
               With("image", Image());
      case 11:
        return Op("restore_image") + With("path", Quoted(Rarely() ? One(kPaths) : "saved"));
      case 12:
        return Tap();
      case 13:
        return Op("load") + With("window", Number()) +
               With("bundle", Quoted(Rarely() ? One(kPaths) : bundle_));
      case 14:
        return Flag() ? Op("tokenize") + (Flag() ? With("text", Quoted(Text())) : Messages()) +
                            Perhaps("image_tokens", Number()) + Perhaps("grid", Grid())
                      : Op("detokenize") + With("ids", Ids());
      case 15:
        return Op("bandwidth") + With("bytes", One(kSizes));
      case 16:
        return Op(One(kOthers).c_str()) + Perhaps("threads", Number());
      case 17:
        return "";
      default:
        return Chat();
    }
  }

  std::string Chat() {
    return Op("chat") + Messages() + With("max_new_tokens", Number()) +
           (image_.empty() || Flag() ? "" : With("image", Image())) +
           Perhaps("do_sample", Flag() ? "true" : "false") + Perhaps("temperature", Number()) +
           Perhaps("top_k", Number()) + Perhaps("top_p", Number()) +
           Perhaps("repetition_penalty", Number()) + Perhaps("seed", Number()) +
           Perhaps("stop", "[" + Quoted(Text()) + "]") + Perhaps("as_original", One(kFlags)) +
           Perhaps("lookup", One(kFlags));
  }

  std::string Tap() {
    const std::string what = One(kTaps);
    std::string fields = Op("tap") + With("what", Quoted(what)) + With("output", Quoted("output"));
    if (what == "embed") return fields + With("ids", Ids());
    fields += With("input", Quoted(Flag() ? One(kPaths) : "row"));
    if (what == "vision_block" || what == "preprocess") {
      fields += With("index", Flag() ? "0" : Number());
    }
    if (what == "cut" || what == "preprocess") fields += Perhaps("max_slices", Number());
    if (what == "vision_embed") fields += Perhaps("width", Number()) + Perhaps("height", Number());
    if (what == "resampler") fields += Perhaps("columns", Number()) + Perhaps("rows", Number());
    if (what != "layers") return fields + Perhaps("window", Number());
    return fields + With("window", Number()) + With("pinned", Number()) +
           Perhaps("per_layer", One(kFlags));
  }

  // Mostly valid conversations.
  std::string Messages() {
    std::string turns;
    const int count = Rarely() ? Below(4) : 1 + 2 * Below(3);
    for (int i = 0; i < count; ++i) {
      const std::string role = Rarely() && Flag() ? One(kRoles) : kRoles[i % 2];
      turns += std::string(i == 0 ? "" : ", ") + "{\"role\": " + Quoted(role) +
               ", \"content\": " + Quoted(Text()) + "}";
    }
    return With("messages", "[" + turns + "]");
  }

  // Now and then longer than any window here, or than a line may be.
  std::string Text() {
    const std::string text = Rarely() ? One(kTexts) : kTexts[Below(2)];
    const int times[] = {1, 1, 1, 1, 2, 3, 9, Rarely() ? 3000 : 40};
    std::string all;
    for (int i = times[Below(8)]; i > 0; --i) all += text;
    return all;
  }

  std::string Ids() {
    std::string ids;
    for (int i = Below(4); i > 0; --i) ids += Number() + ", ";
    return "[" + ids + Number() + "]";
  }

  std::string Grid() { return Rarely() ? Number() : "[" + Number() + ", " + Number() + "]"; }

  std::string Image() { return Quoted(Rarely() ? One(kImages) : image_); }

  static constexpr const char* kFlags[] = {"true", "false", "1", "null"};

  FuzzedDataProvider& input_;
  const std::string bundle_;
  std::string image_;
};

// Sends lines and checks the replies.
class Client {
 public:
  // requests: the write end of a pipe; events: the read end of a pipe.
  Client(int requests, int events) : requests_(requests), events_(events) {}

  // Sends lines at once, with consecutive ids.
  void Send(const std::vector<std::string>& lines) {
    std::string bytes;
    for (const std::string& line : lines) {
      bytes += line + "\n";
      waiting_.push_back(next_id_++);
    }
    if (write(requests_, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
      std::abort();
    }
  }

  // Waits for all replies. Requests with more than `patience` events are cancelled.
  void HearAll(int64_t patience) {
    std::optional<Clock::time_point> cancelled;
    for (int64_t heard = 0; !waiting_.empty(); ++heard) {
      const bool quiet = !Wait(cancelled ? kEndlessMs : kQuietMs);
      if (cancelled && Clock::now() - *cancelled > std::chrono::milliseconds(kEndlessMs)) {
        Break("an end after a cancel", buffer_);
      }
      if (!cancelled && (quiet || heard >= patience)) {
        cancelled = Clock::now();
        Send({"{\"op\": \"cancel\", \"id\": " + std::to_string(next_id_) + "}"});
      }
      if (!quiet) Hear(TakeLine());
    }
  }

  int64_t next_id() const { return next_id_; }
  const std::string& image() const { return image_; }
  bool answered() const { return answered_; }  // the last request succeeded
  int loads() const { return loads_; }         // bundles loaded

 private:
  // Waits for a complete line.
  bool Wait(int ms) {
    while (buffer_.find('\n') == std::string::npos) {
      pollfd ready{events_, POLLIN, 0};
      if (poll(&ready, 1, ms) == 0) return false;
      char bytes[4096];
      const ssize_t count = read(events_, bytes, sizeof(bytes));
      if (count <= 0) std::abort();
      buffer_.append(bytes, static_cast<size_t>(count));
    }
    return true;
  }

  std::string TakeLine() {
    const size_t end = buffer_.find('\n');
    const std::string line = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    return line;
  }

  // Events belong to the oldest unanswered request; its last one is `done` or `error`.
  void Hear(const std::string& line) {
    try {
      Fields event(ParseJson(line, "broken", line), "broken", line);
      const auto id = event.OptionalInteger(field::kId, 0);  // none where the line had none to read
      const std::string name = event.String(field::kEvent);
      if (id && *id != waiting_.front()) Break("the order of answers", line);
      if (name == event::kText) {
        text_ += event.String(field::kText);
      } else if (name == event::kError) {
        if (event.String(field::kCode) == error_code::kInternal) Break("no mistake of ours", line);
        if (event.String(field::kMessage).empty()) Break("a reason", line);
        EndAnswer(false);
      } else if (name == event::kDone) {
        if (event.Has(field::kStatistics)) CheckAnswer(&event, line);
        if (event.Has(field::kLoadMs)) ++loads_;
        if (event.Has(field::kImage)) image_ = event.String(field::kImage);
        EndAnswer(true);
      } else if (name != event::kProgress) {
        Break("a known event", line);
      }
    } catch (const EngineError& error) {
      Break(error.what(), line);
    }
  }

  void CheckAnswer(Fields* event, const std::string& line) {
    if (event->String(field::kText) != text_) Break("an answer is what was passed on", line);
    Fields statistics = event->Object(field::kStatistics);
    const int64_t prompt = statistics.Integer(field::kPromptTokens, 1);
    if (statistics.Integer(field::kReusedTokens, 0) >= prompt) Break("a token to compute", line);
    const auto ids = static_cast<int64_t>(event->Integers(field::kIds).size());
    if (statistics.Integer(field::kGeneratedTokens, 0) != ids) Break("counted tokens", line);
    if (statistics.Integer(field::kDecodeSteps, 0) > ids) Break("a token for each step", line);
  }

  void EndAnswer(bool answered) {
    answered_ = answered;
    waiting_.pop_front();
    text_.clear();
  }

  const int requests_, events_;
  int64_t next_id_ = 1;
  std::deque<int64_t> waiting_;  // ids of unanswered requests
  std::string buffer_, text_, image_;
  bool answered_ = false;
  int loads_ = 0;
};

struct Pipe {
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);  // so that writers do not block
  }
  ~Pipe() {
    close(ends[0]);
    if (ends[1] >= 0) close(ends[1]);
  }
  void End() {
    close(ends[1]);
    ends[1] = -1;
  }
  int ends[2];
};

std::string BundleFolder() {
  const char* bundle = std::getenv("MINICPMV_FUZZ_BUNDLE");
  if (bundle == nullptr) std::abort();
  return bundle;
}

// Sends the requests of the input, then a question that must always be answered.
void Talk(FuzzedDataProvider* input, bool is_loaded, Client* client) {
  const std::string bundle = BundleFolder();
  const std::string load = R"({"op": "load", "window": 60, "bundle": ")" + bundle + "\"}";
  const auto must = [&](const std::string& line) {
    client->Send({line});
    client->HearAll(kMaxEvents);
    if (!client->answered()) Break("a request that works", line);
  };
  if (is_loaded) must(R"({"op": "reset"})");
  Requests requests(input, bundle);
  for (int step = 0; step < kMaxSteps && !requests.done(); ++step) {
    std::vector<std::string> lines;
    const int64_t patience = requests.Below(4) == 3 ? requests.Below(kMaxEvents) : kMaxEvents;
    const int count = requests.Below(4) == 3 ? 1 + requests.Below(kMaxBatch) : 1;
    for (int i = 0; i < count; ++i) {
      lines.push_back(requests.Next(client->next_id() + i, client->image()));
    }
    client->Send(lines);
    client->HearAll(patience);
  }
  if (!is_loaded || client->loads() > 0) must(load);
  must(kQuestion);
}

ThreadPool& Pool() {
  static ThreadPool pool(PlanThreads());
  return pool;
}

// Answers one client's requests.
void Serve(FuzzedDataProvider* input, bool is_loaded, Server* server, const Pipe& events) {
  Pipe requests;
  Client client(requests.ends[1], events.ends[0]);
  std::thread talking([&] {
    Talk(input, is_loaded, &client);
    requests.End();
  });
  {
    RequestQueue queue(requests.ends[0], kLineLimit, &Pool());
    server->Run(&queue);
  }
  talking.join();
}

}  // namespace
}  // namespace minicpmv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace minicpmv;
  static const Pipe events;
  static const LineWriter writer(events.ends[1]);
  static std::vector<std::string> refused;
  static const auto kinds = RunnableBlocks(kBlockLibraries, CpuFeatures(&refused));
  static const Program program{kTarget, kProgramId, kinds};
  // Loading takes longer than most sequences, so the model stays loaded for the next input.
  static Server loaded(program, &writer);
  static bool is_loaded = false;
  FuzzedDataProvider input(data, size);
  if (input.ConsumeIntegralInRange<int>(0, 15) == 15) {
    Server fresh(program, &writer);
    Serve(&input, false, &fresh, events);
  } else {
    Serve(&input, is_loaded, &loaded, events);
    is_loaded = true;
  }
  return 0;
}
