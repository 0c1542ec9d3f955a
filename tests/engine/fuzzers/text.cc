// Fuzzes text: encoding, decoding and streaming.
//
// MINICPMV_FUZZ_BUNDLE is the path of the bundle whose tokenizer is used.
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/error.h"
#include "runtime/engine/prompt.h"
#include "runtime/engine/text_stream.h"
#include "runtime/engine/tokenizer.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {
namespace {

std::string ReadModel() {
  const char* bundle = std::getenv("MINICPMV_FUZZ_BUNDLE");
  if (bundle == nullptr) std::abort();
  std::ifstream file(std::string(bundle) + "/tokenizer.model", std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void Check(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.Encode(text);
  const std::string decoded = tokenizer.Decode(ids);
  if (!IsValidUtf8(decoded)) std::abort();
  std::string streamed;
  TextStream stream(tokenizer, {"ab", "\n"}, [&](std::string_view piece) {
    if (!IsValidUtf8(std::string(piece))) std::abort();
    streamed += piece;
  });
  std::vector<int32_t> taken;
  for (const int32_t id : ids) {
    if (stream.stopped()) break;
    taken.push_back(id);
    stream.Add(id);
  }
  const std::string answer = stream.Finish(taken);
  if (answer != streamed) std::abort();
  BuildPrompt(tokenizer, {{"user", std::string(text)}}, 2, {});
}

}  // namespace
}  // namespace minicpmv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const minicpmv::Tokenizer tokenizer(minicpmv::ReadModel());
  try {
    minicpmv::Check(tokenizer, std::string_view(reinterpret_cast<const char*>(data), size));
  } catch (const minicpmv::EngineError&) {
  }
  return 0;
}
