#include "runtime/engine/server.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <climits>
#include <cstdio>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/engine/chat_fields.h"
#include "runtime/engine/embeddings_file.h"
#include "runtime/engine/handover.h"
#include "runtime/engine/kinds_file.h"
#include "runtime/engine/machine.h"
#include "runtime/engine/picture_fields.h"
#include "runtime/engine/picture_file.h"
#include "runtime/engine/protocol.h"
#include "runtime/engine/self_check.h"
#include "runtime/engine/taps.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {
namespace {

namespace event = protocol::event;
namespace field = protocol::field;
namespace op = protocol::op;
using Clock = std::chrono::steady_clock;

constexpr int64_t kBandwidthBytes = 256 << 20;  // larger than any CPU cache
constexpr int64_t kMinBandwidthBytes = 1 << 20;
constexpr int64_t kMaxBandwidthBytes = 1 << 30;  // a phone kills a process that allocates too much

double MsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// A picture's name in the protocol: its key in hexadecimal.
std::string NameOf(uint64_t key) {
  char name[17];
  std::snprintf(name, sizeof(name), "%016llx", static_cast<unsigned long long>(key));
  return name;
}

// Returns the fields that name and describe a picture.
Line LineOf(const EncodedPicture& picture) {
  Line line;
  line.Set(field::kImage, NameOf(picture.key)).Set(field::kImages, picture.grid.images());
  SetGrid(picture.grid, &line);
  return line;
}

Line ProgressOf(const char* stage, int64_t done, int64_t total) {
  return Line().Set(field::kStage, stage).Set(field::kDone, done).Set(field::kTotal, total);
}

}  // namespace

Server::Server(Program program, const LineWriter* writer)
    : program_(std::move(program)), writer_(*writer) {}

void Server::Run(RequestQueue* queue) {
  queue_ = queue;
  while (const auto line = queue->Next()) Answer(*line);
}

void Server::Answer(const RequestLine& line) {
  current_ = {line.number, nullptr};
  Line error;
  try {
    if (line.too_long) {
      throw EngineError(error_code::kInvalidRequest,
                        "a line of more than " + std::to_string(protocol::kLineLimit) + " bytes");
    }
    if (!IsValidUtf8(line.text)) {
      throw EngineError(error_code::kInvalidText, "the request is not UTF-8");
    }
    Fields request(ParseJson(line.text, error_code::kInvalidRequest, "request"),
                   error_code::kInvalidRequest, "request");
    current_.id = request.Id(field::kId);
    Send(event::kDone, Dispatch(&request));
    return;
  } catch (const EngineError& problem) {
    error.Set(field::kCode, problem.code()).Set(field::kMessage, problem.what());
  } catch (const std::bad_alloc&) {
    error.Set(field::kCode, error_code::kOutOfMemory).Set(field::kMessage, "not enough memory");
  } catch (const std::exception& problem) {
    error.Set(field::kCode, error_code::kInternal).Set(field::kMessage, problem.what());
  }
  Send(event::kError, error);
}

Line Server::Dispatch(Fields* request) {
  const std::string name = request->String(field::kOp);
  if (name == op::kLoad) return Load(request);
  if (name == op::kImage) return Image(request);
  if (name == op::kChat) return Chat(request);
  if (name == op::kSaveImage) return SaveImage(request);
  if (name == op::kRestoreImage) return RestoreImage(request);
  if (name == op::kSelfCheck) return SelfCheck(request);
  if (name == op::kBandwidth) return Bandwidth(request);
  if (name == op::kProfile) return TakeProfile(request);
  if (name == op::kThreads) return Threads(request);
  if (name == op::kTokenize) return Tokenize(request);
  if (name == op::kDetokenize) return Detokenize(request);
  if (name == op::kTap) {
    const auto cancelled = [this] { return queue_->Cancelled(current_.number); };
    return RunTap(request, &RequireModel(), cancelled);
  }
  if (name == op::kReset) {
    request->RefuseUnknown();
    RequireModel().generator().Reset();
    return Line();
  }
  // A cancel took effect when it was read; here it is only answered.
  if (name == op::kCancel) {
    request->RefuseUnknown();
    return Line();
  }
  request->Refuse("unknown op " + name);
}

Line Server::Load(Fields* request) {
  const auto started = Clock::now();
  const std::string folder = request->String(field::kBundle);
  const int64_t window = request->Integer(field::kWindow, 1);
  const std::optional<std::string> kinds_file = request->OptionalString(field::kKindsFile);
  const std::optional<RegularFile> weights = TakeWeights(request);
  const auto choose = [&](const Bundle& bundle) { return Choose(bundle, kinds_file); };
  // The previous model stays until the new one is complete.
  model_ = std::make_unique<Model>(folder, program_.target, program_.program_id, choose, window,
                                   weights ? &*weights : nullptr);
  const Kinds& kinds = model_->kinds();
  const ModelConfig& config = model_->config();
  return Line()
      .Set(field::kArchitecture, config.architecture)
      .Set(field::kImageTokens, config.vision ? config.vision->query_num : int64_t{0})
      .Set(field::kMaxSlices, config.vision ? config.vision->max_slices() : int64_t{0})
      .Set(field::kWeightsBytes, static_cast<int64_t>(model_->bundle().weights_bytes()))
      .Set(field::kKinds, Line()
                              .Set(field::kDecode, kinds.decode.prefix)
                              .Set(field::kPrefill, kinds.prefill.prefix)
                              .Set(field::kPicture, kinds.picture.prefix))
      .Set(field::kThreads, Line()
                                .Set(field::kDecode, int64_t{kinds.decode.threads})
                                .Set(field::kPrefill, int64_t{kinds.prefill.threads})
                                .Set(field::kPicture, int64_t{kinds.picture.threads}))
      .Set(field::kLoadMs, MsSince(started));
}

Kinds Server::Choose(const Bundle& bundle, const std::optional<std::string>& kinds_file) const {
  const ThreadPool& pool = queue_->pool();
  Choices choices{program_.kinds, {pool.threads()}};
  if (pool.most() > pool.threads()) choices.threads.push_back(pool.most());
  if (!kinds_file) return Kinds(choices.All().at(0));
  const KindsIdentity identity{program_.program_id, CpuName(), choices};
  if (const auto known = ReadKinds(*kinds_file, identity)) return *known;
  const Kinds measured = MeasureKinds(choices, bundle);
  if (pool.spares()) return measured;  // it was about fewer threads
  try {
    WriteKinds(*kinds_file, identity, measured);
  } catch (const EngineError&) {  // the next load measures again
  }
  return measured;
}

std::optional<RegularFile> Server::TakeWeights(Fields* request) const {
  using File = std::optional<RegularFile>;
  const auto fd = request->OptionalInteger(field::kWeightsFd, 0);
  const bool is_sent = request->OptionalFlag(field::kReceiveWeights).value_or(false);
  request->RefuseUnknown();
  if (fd && is_sent) request->Refuse("expected weights_fd or receive_weights, not both");
  if (fd) return File(std::in_place, static_cast<int>(std::min<int64_t>(*fd, INT_MAX)));
  if (!is_sent) return std::nullopt;
  const Handover handover;
  Send(event::kSocket, Line().Set(field::kName, handover.name()));
  const Descriptor sent(
      handover.Receive([this] { return queue_->Cancelled(current_.number); }));
  return File(std::in_place, sent.get());
}

Line Server::Image(Fields* request) {
  const auto started = Clock::now();
  const std::string path = request->String(field::kPath);
  PictureEncoder& pictures = RequireModel().pictures();
  const VisionConfig& vision = *model_->config().vision;
  const auto max_slices = TakeMaxSlices(request, vision);
  request->RefuseUnknown();
  const PictureFile file(path);
  const RgbPicture& pixels = file.picture();
  const Cut cut = vision.Plan({pixels.width, pixels.height}, max_slices);
  bool ran = false;
  WorkHooks hooks = Hooks(protocol::stage::kEncode);
  hooks.progress = [&](int64_t done, int64_t total) {
    ran = true;
    Line line = ProgressOf(protocol::stage::kEncode, done, total);
    SetGrid(cut.grid, &line);
    Send(event::kProgress, line);
  };
  const EncodedPicture* picture = pictures.Encode(pixels, cut, hooks);
  if (picture == nullptr) throw EngineError(error_code::kCancelled, "the picture was cancelled");
  return LineOf(*picture)
      .Set(field::kRemembered, !ran)
      .Set(field::kEncodeMs, MsSince(started));
}

Line Server::Chat(Fields* request) {
  Model& model = RequireModel();
  ChatRequest chat;
  chat.messages = TakeMessages(request);
  chat.picture = FindPicture(request);
  chat.sampling = TakeSampling(request);
  chat.max_new_tokens = request->Integer(field::kMaxNewTokens, 1);
  if (request->Has(field::kStop)) chat.stops = request->Strings(field::kStop);
  chat.as_original = request->OptionalFlag(field::kAsOriginal).value_or(false);
  chat.top_logprobs = request->OptionalInteger(field::kTopLogprobs, 0);
  chat.lookup = request->OptionalFlag(field::kLookup).value_or(true);
  request->RefuseUnknown();
  if (chat.top_logprobs.value_or(0) > kMaxTopLogprobs) {
    request->Refuse("top_logprobs: expected at most " + std::to_string(kMaxTopLogprobs));
  }
  const auto on_text = [this](std::string_view text) {
    Send(event::kText, Line().Set(field::kText, std::string(text)));
  };
  const auto on_token = [this, &model](const StepLogprobs& step) {
    const Tokenizer& tokenizer = model.tokenizer();
    json::Array top;
    for (const TokenLogprob& token : step.top) top.push_back(LineOf(token, tokenizer).object());
    Send(event::kToken, LineOf(step.chosen, tokenizer).Set(field::kTop, top));
  };
  const minicpmv::Answer answer =
      model.generator().Generate(chat, on_text, Hooks(protocol::stage::kPrefill), on_token);
  return Line()
      .Set(field::kText, answer.text)
      .Set(field::kIds, ToJson(answer.ids))
      .Set(field::kStop, NameOf(answer.stop))
      .Set(field::kStatistics, StatisticsOf(answer));
}

Line Server::SaveImage(Fields* request) {
  const EncodedPicture* picture = FindPicture(request);
  const std::string path = request->String(field::kPath);
  request->RefuseUnknown();
  if (picture == nullptr) request->Refuse("lacks the field image");
  return Line().Set(field::kBytes, SaveEmbeddings(path, Identity(), *picture));
}

Line Server::RestoreImage(Fields* request) {
  PictureEncoder& pictures = RequireModel().pictures();
  const std::string path = request->String(field::kPath);
  request->RefuseUnknown();
  EncodedPicture loaded = LoadEmbeddings(path, Identity());
  const EncodedPicture* picture = pictures.Find(loaded.key);
  const bool remembered = picture != nullptr;
  if (!remembered) picture = pictures.Remember(std::move(loaded));
  return LineOf(*picture).Set(field::kRemembered, remembered);
}

Line Server::SelfCheck(Fields* request) {
  request->RefuseUnknown();
  json::Array checks;
  bool passed = true;
  for (const Check& check : RunSelfCheck(&RequireModel(), Hooks(protocol::stage::kSelfCheck))) {
    passed = passed && check.passed;
    checks.push_back(Line()
                         .Set(field::kQuestion, check.question)
                         .Set(field::kExpected, check.expected)
                         .Set(field::kText, check.text)
                         .Set(field::kPassed, check.passed)
                         .object());
  }
  return Line()
      .Set(field::kPassed, passed)
      .Set(field::kChecks, checks)
      .Set(field::kPeakRssBytes, PeakRssBytes());
}

Line Server::Bandwidth(Fields* request) {
  const int64_t bytes =
      request->OptionalInteger(field::kBytes, kMinBandwidthBytes).value_or(kBandwidthBytes);
  request->RefuseUnknown();
  if (bytes > kMaxBandwidthBytes) {
    request->Refuse("bytes: expected at most " + std::to_string(kMaxBandwidthBytes));
  }
  const auto ms = MeasureReadMs(bytes, [this] { return queue_->Cancelled(current_.number); });
  if (!ms) throw EngineError(error_code::kCancelled, "the measurement was cancelled");
  return Line()
      .Set(field::kBytes, bytes)
      .Set(field::kMs, *ms)
      .Set(field::kLaunchUs, MeasureLaunchUs());
}

Line Server::TakeProfile(Fields* request) {
  request->RefuseUnknown();
  json::Array kernels;
  for (const auto& [kernel, time] : RequireModel().blocks().TakeProfile()) {
    kernels.push_back(Line()
                          .Set(field::kName, kernel)
                          .Set(field::kCalls, time.calls)
                          .Set(field::kRows, time.rows)
                          .Set(field::kMs, time.ms)
                          .object());
  }
  return Line().Set(field::kKernels, kernels);
}

// The queue has already set the number; here it is only answered.
Line Server::Threads(Fields* request) const {
  return Line().Set(field::kThreads, int64_t{TakeThreads(request, queue_->pool().threads())});
}

Line Server::Tokenize(Fields* request) {
  const Tokenizer& tokenizer = RequireModel().tokenizer();
  if (const auto text = request->OptionalString(field::kText)) {
    request->RefuseUnknown();
    return Line().Set(field::kIds, ToJson(tokenizer.Encode(*text)));
  }
  const std::vector<Message> messages = TakeMessages(request);
  const int64_t image_tokens = request->OptionalInteger(field::kImageTokens, 0).value_or(0);
  const bool as_original = request->OptionalFlag(field::kAsOriginal).value_or(false);
  const auto& vision = model_->config().vision;
  const Grid grid = vision ? TakeGrid(request, *vision) : Grid{};
  request->RefuseUnknown();
  CheckConversation(messages, as_original);
  if (image_tokens != 0 && image_tokens != (vision ? vision->query_num : 0)) {
    request->Refuse("image_tokens: expected 0 or this model's number");
  }
  if (image_tokens == 0 && !grid.empty()) request->Refuse("grid: needs image_tokens");
  const Prompt prompt = BuildPrompt(tokenizer, messages, image_tokens, grid);
  Line line;
  line.Set(field::kIds, ToJson(prompt.ids));
  std::vector<int64_t> starts = prompt.image_starts;
  if (starts.empty()) return line;
  line.Set(field::kImageStart, starts.front());
  starts.erase(starts.begin());
  if (!starts.empty()) line.Set(field::kSliceStarts, ToJson(starts));
  return line;
}

Line Server::Detokenize(Fields* request) {
  const Tokenizer& tokenizer = RequireModel().tokenizer();
  std::vector<int32_t> ids;
  for (const int64_t id : request->Integers(field::kIds)) {
    // Clamped: ids without a piece are dropped, however large they are.
    ids.push_back(static_cast<int32_t>(std::min<int64_t>(id, tokenizer.vocab_size())));
  }
  request->RefuseUnknown();
  return Line().Set(field::kText, tokenizer.Decode(ids));
}

Model& Server::RequireModel() const {
  if (!model_) throw EngineError(error_code::kNotLoaded, "no bundle is loaded; load one first");
  return *model_;
}

const EncodedPicture* Server::FindPicture(Fields* request) const {
  const auto name = request->OptionalString(field::kImage);
  if (!name) return nullptr;
  uint64_t key = 0;
  const char* end = name->data() + name->size();
  const auto parsed = std::from_chars(name->data(), end, key, 16);
  const EncodedPicture* picture = parsed.ptr == end ? RequireModel().pictures().Find(key) : nullptr;
  if (picture == nullptr) {
    throw EngineError(error_code::kUnknownPicture,
                      "picture " + *name + " is not in the cache; send it again");
  }
  return picture;
}

EmbeddingsIdentity Server::Identity() const {
  RequireModel().pictures();  // throws if there is no vision encoder
  const ModelConfig& config = model_->config();
  return {program_.program_id, model_->bundle().weights_sha256(), config.vision->query_num,
          config.decoder.hidden_size, config.vision->max_slices()};
}

WorkHooks Server::Hooks(const char* stage) const {
  WorkHooks hooks;
  hooks.cancelled = [this] { return queue_->Cancelled(current_.number); };
  hooks.progress = [this, stage](int64_t done, int64_t total) {
    Send(event::kProgress, ProgressOf(stage, done, total));
  };
  return hooks;
}

void Server::Send(const char* event, Line line) const {
  line.Set(field::kEvent, event);
  if (current_.id != nullptr) line.Set(field::kId, current_.id);
  writer_.Write(line);
}

}  // namespace minicpmv
