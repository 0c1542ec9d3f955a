// Fuzzes bundles. The input is the manifest, a zero byte, and the weights file.
#include "runtime/engine/bundle.h"

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "runtime/engine/error.h"

namespace {

void Write(const std::string& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) std::abort();
}

// Reads every byte of every tensor in a bundle.
void ReadAll(const minicpmv::Bundle& bundle) {
  uint64_t sum = 0;
  for (const auto& [name, shape] : minicpmv::TensorShapes(bundle.config())) {
    for (const minicpmv::TensorView& part : bundle.Parts(name)) {
      for (size_t i = 0; i < part.size; ++i) sum += part.data[i];
    }
  }
  __asm__ volatile("" : : "r"(sum));  // keeps the reads from being optimized away
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace minicpmv;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t border = input.find('\0');
  if (border == std::string_view::npos) return -1;
  Write("bundle.json", input.substr(0, border));
  Write("weights.safetensors", input.substr(border + 1));
  try {
    const WeightsFile weights("weights.safetensors", RegularFile("weights.safetensors"));
    (void)weights.Has("llm.embed");
  } catch (const EngineError&) {
  }
  try {
    ReadAll(Bundle(".", "host", "fuzz", nullptr));
  } catch (const EngineError&) {
  }
  return 0;
}
