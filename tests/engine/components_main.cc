// Runs the engine's components for tests: commands on stdin, one reply each on stdout.
//
// A command is `NAME COUNT\n` and COUNT fields, a field is `SIZE\n` and SIZE bytes. A reply is
// `ok SIZE\n` or `error SIZE\n` and SIZE bytes; an error's are `CODE: MESSAGE`.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/engine/dot_products.h"
#include "runtime/engine/error.h"
#include "runtime/engine/image_preprocessor.h"
#include "runtime/engine/logprobs.h"
#include "runtime/engine/matrix_unit.h"
#include "runtime/engine/outer_products.h"
#include "runtime/engine/picture_file.h"
#include "runtime/engine/positions.h"
#include "runtime/engine/prompt.h"
#include "runtime/engine/random.h"
#include "runtime/engine/prompt_lookup.h"
#include "runtime/engine/sampler.h"
#include "runtime/engine/slices.h"
#include "runtime/engine/text_stream.h"
#include "runtime/engine/tokenizer.h"
#include "runtime/engine/window.h"

namespace minicpmv {
namespace {

using Fields = std::vector<std::string>;

template <typename T>
std::vector<T> Numbers(const std::string& text) {
  std::istringstream stream(text);
  std::vector<T> numbers;
  for (T number; stream >> number;) numbers.push_back(number);
  return numbers;
}

template <typename T>
std::string Join(const std::vector<T>& numbers) {
  std::string text;
  for (const T number : numbers) text += std::to_string(number) + " ";
  return text;
}

std::string Bytes(const void* data, size_t size) {
  return std::string(static_cast<const char*>(data), size);
}

std::string Sized(std::string_view text) {
  return std::to_string(text.size()) + "\n" + std::string(text);
}

class Components {
 public:
  std::string Run(const std::string& name, const Fields& fields) {
    using Command = std::string (Components::*)(const Fields&);
    static const std::map<std::string, Command> commands = {
        {"load", &Components::Load},         {"encode", &Components::Encode},
        {"decode", &Components::Decode},     {"turn", &Components::Turn},
        {"prompt", &Components::MakePrompt}, {"stream", &Components::Stream},
        {"picture", &Components::Picture},   {"peak", &Components::Peak},
        {"random", &Components::Numbers64},  {"distribution", &Components::Distribution},
        {"choose", &Components::Choose},     {"window", &Components::RunWindow},
        {"logprobs", &Components::Logprobs}, {"cuts", &Components::PlanCuts},
        {"slices", &Components::Slices},     {"positions", &Components::Positions},
        {"places", &Components::Places},     {"lookup", &Components::Lookup},
#if defined(__aarch64__)
        {"outer", &Components::Outer},       {"few", &Components::Few},
#endif
        {"matrix", &Components::Matrix},
    };
    return (this->*commands.at(name))(fields);
  }

 private:
  // tokenizer.model; then perhaps the ids of the tags around slices -> vocab_size
  std::string Load(const Fields& fields) {
    std::optional<SliceTags> slices;
    if (fields.size() > 1) {
      const auto ids = Numbers<int32_t>(fields[1]);
      slices = {ids.at(0), ids.at(1)};
    }
    tokenizer_ = std::make_unique<Tokenizer>(fields.at(0), slices);
    return std::to_string(tokenizer_->vocab_size());
  }

  std::string Encode(const Fields& fields) { return Join(tokenizer_->Encode(fields.at(0))); }

  std::string Decode(const Fields& fields) {
    return tokenizer_->Decode(Numbers<int32_t>(fields.at(0)));
  }

  std::string Turn(const Fields& fields) {
    return std::to_string(TurnTokens(*tokenizer_, fields.at(0)));
  }

  // image tokens, perhaps columns and rows of slices; as_original; role and content of each turn
  // -> a line with the first placeholder of each image, one with the picture's end or -1, and ids
  std::string MakePrompt(const Fields& fields) {
    std::vector<Message> messages;
    for (size_t i = 2; i + 1 < fields.size(); i += 2) {
      messages.push_back({fields[i], fields[i + 1]});
    }
    CheckConversation(messages, fields.at(1) == "1");
    const auto n = Numbers<int64_t>(fields.at(0));
    const Grid grid = n.size() > 1 ? Grid{n.at(1), n.at(2)} : Grid{};
    const Prompt prompt = BuildPrompt(*tokenizer_, messages, n.at(0), grid);
    return Join(prompt.image_starts) + "\n" + std::to_string(prompt.picture_end.value_or(-1)) +
           "\n" + Join(prompt.ids);
  }

  // ids, then stop strings -> the text sent for each id and at the end, whether stopped, the answer
  std::string Stream(const Fields& fields) {
    std::string passed, reply;
    const std::vector<int32_t> ids = Numbers<int32_t>(fields.at(0));
    TextStream stream(*tokenizer_, Fields(fields.begin() + 1, fields.end()),
                      [&](std::string_view text) { passed += text; });
    std::vector<int32_t> taken;
    for (const int32_t id : ids) {
      if (stream.stopped()) break;
      taken.push_back(id);
      stream.Add(id);
      reply += Sized(passed);
      passed.clear();
    }
    const std::string answer = stream.Finish(taken);
    return reply + Sized(passed) + Sized(stream.stopped() ? "stopped" : "") + Sized(answer);
  }

  // path, S -> resized (S, S, 3) bytes, then normalised (3, S, S) float32
  std::string Picture(const Fields& fields) {
    const PictureFile file(fields.at(0));
    const Size size{std::stoll(fields.at(1)), std::stoll(fields.at(1))};
    ImagePreprocessor preprocessor(size.area());
    const auto count = static_cast<size_t>(3 * size.area());
    bool cancel = fields.size() > 2;
    const uint8_t* resized =
        preprocessor.Resize(file.picture(), size, {0, 0, size}, [&] { return cancel; });
    if (resized == nullptr) return "cancelled";
    std::vector<float> pixels(count);
    ImagePreprocessor::Normalize(resized, size, pixels.data());
    return Bytes(resized, count) + Bytes(pixels.data(), count * sizeof(float));
  }

  static Cut Planned(const std::vector<int64_t>& n) {
    return PlanCut({n.at(0), n.at(1)}, {n.at(2), n.at(3), n.at(4)});
  }

  // lines of width, height, max_slice_nums, scale_resolution, patch_size
  // -> for each line the overview's size, columns, rows, a cell's size
  std::string PlanCuts(const Fields& fields) {
    std::istringstream lines(fields.at(0));
    std::string reply;
    for (std::string line; std::getline(lines, line);) {
      const Cut cut = Planned(Numbers<int64_t>(line));
      reply += Join(std::vector<int64_t>{cut.overview.width, cut.overview.height,
                                         cut.grid.columns, cut.grid.rows, cut.cell.width,
                                         cut.cell.height});
    }
    return reply;
  }

  // path; max_slice_nums, scale_resolution, patch_size -> normalised (3, height, width) float32 of
  // the overview and of each slice
  std::string Slices(const Fields& fields) {
    const PictureFile file(fields.at(0));
    const RgbPicture& picture = file.picture();
    auto n = Numbers<int64_t>(fields.at(1));
    const Cut cut = PlanCut({picture.width, picture.height}, {n.at(0), n.at(1), n.at(2)});
    ImagePreprocessor preprocessor(std::max(cut.overview.area(), cut.cell.area()));
    std::string reply;
    for (int64_t i = 0; i < cut.images(); ++i) {
      const Size size = cut.ImageSize(i);
      const uint8_t* resized =
          preprocessor.Resize(picture, cut.Whole(i), cut.Part(i), [] { return false; });
      std::vector<float> pixels(static_cast<size_t>(3 * size.area()));
      ImagePreprocessor::Normalize(resized, size, pixels.data());
      reply += Bytes(pixels.data(), pixels.size() * sizeof(float));
    }
    return reply;
  }

  // side, width, columns, rows; stored positions as float32 -> positions as float32
  std::string Positions(const Fields& fields) {
    const auto n = Numbers<int64_t>(fields.at(0));
    const std::vector<float> stored = Floats(fields.at(1));
    const Size patches{n.at(2), n.at(3)};
    std::vector<float> positions(static_cast<size_t>(patches.area() * n.at(1)));
    ResamplePositions(stored.data(), n.at(0), n.at(1), patches, positions.data());
    return Bytes(positions.data(), positions.size() * sizeof(float));
  }

  // count, width -> encoded numbers as float32
  std::string Places(const Fields& fields) {
    const auto n = Numbers<int64_t>(fields.at(0));
    std::vector<float> encoded(static_cast<size_t>(n.at(0) * n.at(1)));
    EncodePlaces(n.at(0), n.at(1), encoded.data());
    return Bytes(encoded.data(), encoded.size() * sizeof(float));
  }

#if defined(__aarch64__)
  // weights, steps, tokens, scales as bytes; stride, length, columns, groups, quads; function -> out
  std::string Outer(const Fields& fields) {
    static const std::map<std::string, decltype(&minicpmv_outer_products)> functions = {
        {"outer", minicpmv_outer_products},
        {"dot", minicpmv_dot_products},
        {"matrix", minicpmv_matrix_products},
    };
    const auto n = Numbers<int64_t>(fields.at(4));
    const auto at = [&fields](size_t i) { return static_cast<const void*>(fields.at(i).data()); };
    std::vector<float> out(static_cast<size_t>(n.at(0) / 4 * n.at(1)), -1);
    functions.at(fields.at(5))(
        static_cast<const int8_t*>(at(0)), static_cast<const uint16_t*>(at(1)),
        static_cast<const int8_t*>(at(2)), static_cast<const float*>(at(3)), out.data(), n.at(0),
        n.at(1), n.at(2), n.at(3), n.at(4));
    return Bytes(out.data(), out.size() * sizeof(float));
  }

  // weights, steps, tokens, scales, starts as bytes; stride, length, columns, groups; function -> out
  std::string Few(const Fields& fields) {
    static const std::map<std::string, decltype(&minicpmv_few_dot_products)> functions = {
        {"dot", minicpmv_few_dot_products},
        {"matrix", minicpmv_few_matrix_products},
    };
    const auto n = Numbers<int64_t>(fields.at(5));
    const auto at = [&fields](size_t i) { return static_cast<const void*>(fields.at(i).data()); };
    std::vector<float> out(static_cast<size_t>(n.at(0) / 4 * n.at(1)), -1);
    functions.at(fields.at(6))(
        static_cast<const uint8_t*>(at(0)), static_cast<const uint16_t*>(at(1)),
        static_cast<const int8_t*>(at(2)), static_cast<const float*>(at(3)), out.data(), n.at(0),
        n.at(1), n.at(2), n.at(3), static_cast<const int32_t*>(at(4)));
    return Bytes(out.data(), out.size() * sizeof(float));
  }
#endif

  // -> what is wrong with the matrix unit, or how it works: the bytes of Arm's streaming vector
  std::string Matrix(const Fields&) {
    if (const auto problem = MatrixUnitProblem()) return *problem;
#if defined(__aarch64__)
    return std::to_string(minicpmv_streaming_bytes());
#else
    return "right";
#endif
  }

  std::string Peak(const Fields&) {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
      if (word == "VmHWM:" && status >> word) return word;  // KiB
    }
    return "";
  }

  std::string Numbers64(const Fields& fields) {
    Random random(std::stoull(fields.at(0)));
    std::vector<uint64_t> numbers;
    for (int64_t i = std::stoll(fields.at(1)); i > 0; --i) numbers.push_back(random.Next());
    return Join(numbers);
  }

  // do_sample temperature top_k top_p penalty seed, `-` where not set
  static SamplingOptions Options(const std::string& text) {
    const auto words = Numbers<std::string>(text);
    SamplingOptions options;
    options.do_sample = words.at(0) == "1";
    options.temperature = std::strtod(words.at(1).c_str(), nullptr);
    if (words.at(2) != "-") options.top_k = std::stoll(words.at(2));
    options.top_p = std::strtod(words.at(3).c_str(), nullptr);
    options.repetition_penalty = std::strtod(words.at(4).c_str(), nullptr);
    if (words.at(5) != "-") options.seed = std::stoull(words.at(5));
    options.Check();
    return options;
  }

  static std::vector<float> Floats(const std::string& bytes) {
    std::vector<float> numbers(bytes.size() / sizeof(float));
    std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(float));
    return numbers;
  }

  // options, logits as float32, generated ids -> int32 ids, then float32 probabilities
  std::string Distribution(const Fields& fields) {
    const std::vector<float> logits = Floats(fields.at(1));
    Sampler sampler(Options(fields.at(0)), static_cast<int64_t>(logits.size()));
    std::vector<int32_t> ids;
    std::vector<float> probabilities;
    for (const Candidate& candidate :
         sampler.Distribution(logits.data(), Numbers<int32_t>(fields.at(2)))) {
      ids.push_back(candidate.id);
      probabilities.push_back(candidate.probability);
    }
    return Bytes(ids.data(), ids.size() * sizeof(int32_t)) +
           Bytes(probabilities.data(), probabilities.size() * sizeof(float));
  }

  // options, logits as float32, generated ids, how often -> ids
  std::string Choose(const Fields& fields) {
    const std::vector<float> logits = Floats(fields.at(1));
    Sampler sampler(Options(fields.at(0)), static_cast<int64_t>(logits.size()));
    const auto generated = Numbers<int32_t>(fields.at(2));
    std::vector<int32_t> ids;
    for (int64_t i = std::stoll(fields.at(3)); i > 0; --i) {
      ids.push_back(sampler.Choose(logits.data(), generated));
    }
    return Join(ids);
  }

  // the prompt's ids, then five numbers for each token of the answer: its id, the most drafts, and of
  // the pass that follows: drafts accepted, ms over one token, ms over several -> drafts, each
  // token's followed by -1
  std::string Lookup(const Fields& fields) {
    PromptLookup lookup(Numbers<int32_t>(fields.at(0)));
    std::istringstream steps(fields.at(1));
    std::vector<int32_t> all;
    int32_t id = 0;
    int64_t most = 0;
    size_t accepted = 0;
    double single_ms = 0, several_ms = 0;
    while (steps >> id >> most >> accepted >> single_ms >> several_ms) {
      lookup.Add(id);
      const std::vector<int32_t> drafted = lookup.Draft(most);
      all.insert(all.end(), drafted.begin(), drafted.end());
      all.push_back(-1);
      lookup.Learn(drafted.size(), std::min(accepted, drafted.size()),
                   drafted.empty() ? single_ms : several_ms);
    }
    return Join(all);
  }

  // logits as float32, chosen id, count -> int32 ids, then float32 logprobs; the chosen first
  std::string Logprobs(const Fields& fields) {
    const std::vector<float> logits = Floats(fields.at(0));
    const StepLogprobs step =
        LogprobsOf(logits.data(), static_cast<int64_t>(logits.size()),
                   static_cast<int32_t>(std::stoll(fields.at(1))), std::stoll(fields.at(2)));
    std::vector<int32_t> ids = {step.chosen.id};
    std::vector<float> logprobs = {step.chosen.logprob};
    for (const TokenLogprob& token : step.top) {
      ids.push_back(token.id);
      logprobs.push_back(token.logprob);
    }
    return Bytes(ids.data(), ids.size() * sizeof(int32_t)) +
           Bytes(logprobs.data(), logprobs.size() * sizeof(float));
  }

  // A key is a token id, or PICTURE:INDEX.
  static std::vector<CacheKey> Keys(const std::string& text) {
    std::vector<CacheKey> keys;
    for (const std::string& word : Numbers<std::string>(text)) {
      const size_t colon = word.find(':');
      const bool token = colon == std::string::npos;
      keys.push_back(token ? CacheKey{0, std::stoll(word)}
                           : CacheKey{std::stoull(word), std::stoll(word.substr(colon + 1))});
    }
    return keys;
  }

  // One operation: a verb and its numbers; `rewind` also takes the cached and requested keys.
  std::string RunWindow(const Fields& fields) {
    std::istringstream words(fields.at(0));
    std::string verb;
    words >> verb;
    std::string rest;
    std::getline(words, rest);
    const auto n = Numbers<int64_t>(rest);
    if (verb == "new") {
      const int64_t slots = Window::SlotsFor(n.at(0), n.at(1), n.at(2), n.at(3));
      window_.emplace(n[0], n[1], slots, n[3]);
      return std::to_string(slots) + " " + std::to_string(window_->chunk());
    }
    if (verb == "fit") {
      CheckFit(n.at(0), n.at(1), n.at(2), n.at(3), n.at(4) != 0);
      return "";
    }
    if (verb == "pinned") {
      std::optional<int64_t> end;
      if (n.at(0) >= 0) end = n[0];
      return std::to_string(PinnedTokens(end));
    }
    if (verb == "append") return Appended(n.at(0));
    if (verb == "truncate") return std::to_string(window_->Truncate(n.at(0)));
    if (verb == "rewind") {
      return std::to_string(window_->Rewind(Keys(fields.at(1)), Keys(fields.at(2)), n.at(0)));
    }
    if (verb == "keys") return RequestText(n, fields.at(1), fields.at(2));
    throw EngineError(error_code::kInvalidRequest, "no such operation: " + verb);
  }

  // Appends tokens. -> a line with the length, the oldest kept token and the new tokens' slots;
  // then a line for each query: its position for pinned keys, then the keys that it sees
  std::string Appended(int64_t count) {
    const int64_t start = window_->length();
    window_->Append(count);
    std::vector<int64_t> line = {window_->length(), window_->OldestKept()};
    for (int64_t i = start; i < start + count; ++i) line.push_back(window_->Slot(i));
    std::string reply = Join(line);
    for (int64_t query = start; query < start + count; ++query) {
      line = {window_->PinnedPosition(query)};
      for (int64_t key = 0; key < window_->length(); ++key) {
        if (window_->Sees(query, key)) line.push_back(key);
      }
      reply += "\n" + Join(line);
    }
    return reply;
  }

  // image tokens, picture; first placeholder of each image; ids -> keys
  static std::string RequestText(const std::vector<int64_t>& n, const std::string& starts,
                                 const std::string& ids) {
    std::string text;
    for (const CacheKey& key : RequestKeys(Numbers<int32_t>(ids), Numbers<int64_t>(starts),
                                           n.at(0), static_cast<uint64_t>(n.at(1)))) {
      if (key.picture != 0) text += std::to_string(key.picture) + ":";
      text += std::to_string(key.id) + " ";
    }
    return text;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<Window> window_;
};

std::string ReadField() {
  std::string line;
  std::getline(std::cin, line);
  std::string bytes(std::stoull(line), '\0');
  std::cin.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

void Reply(const char* outcome, const std::string& bytes) {
  std::cout << outcome << " " << bytes.size() << "\n" << bytes;
}

}  // namespace

int Main() {
  Components components;
  for (std::string line; std::getline(std::cin, line);) {
    const size_t space = line.find(' ');
    Fields fields(std::stoull(line.substr(space)));
    for (std::string& field : fields) field = ReadField();
    try {
      Reply("ok", components.Run(line.substr(0, space), fields));
    } catch (const EngineError& error) {
      Reply("error", error.code() + ": " + error.what());
    }
  }
  return 0;
}

}  // namespace minicpmv

int main() { return minicpmv::Main(); }
