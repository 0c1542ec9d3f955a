// Runs parts of an engine's build, for tests. Each command prints one JSON line.
//
//   choose [PREFIX=FEATURES]…  the CPU features, and which of these block libraries is chosen
//   weights FILE…              the contents of a weights file, or why it is refused
//   proof                      the result of a compiled block
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/device_api.h>
#include <tvm/runtime/memory/memory_manager.h>
#include <tvm/runtime/tensor.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/build_info.h"
#include "runtime/engine/cpu_features.h"
#include "runtime/engine/error.h"
#include "runtime/engine/json.h"
#include "runtime/engine/weights_file.h"

namespace minicpmv {
namespace {

namespace ffi = tvm::ffi;
using Words = std::vector<std::string>;
using tvm::runtime::Tensor;

json::Object Choose(const Words &words) {
  std::vector<std::pair<std::string, std::string>> parts;
  for (const std::string &word : words) {
    const size_t at = word.find('=');
    parts.emplace_back(word.substr(0, at), word.substr(at + 1));
  }
  std::vector<BlockLibrary> libraries;
  for (const auto &part : parts) libraries.push_back({part.first.c_str(), part.second.c_str()});
  libraries.push_back({nullptr, nullptr});
  std::vector<std::string> refused;
  const auto features = CpuFeatures(&refused);
  json::Array names;
  for (const std::string &feature : features) names.push_back(ffi::String(feature));
  json::Array sentences;
  for (const std::string &sentence : refused) sentences.push_back(ffi::String(sentence));
  json::Object line;
  line.Set(ffi::String("features"), names);
  line.Set(ffi::String("refused"), sentences);
  line.Set(ffi::String("prefix"), ffi::String(RunnableBlocks(libraries.data(), features).at(0)));
  return line;
}

json::Object Describe(const std::string &path) {
  const WeightsFile file(path, RegularFile(path));
  json::Object line;
  for (const auto &[name, tensor] : file.tensors()) {
    json::Array shape;
    for (int64_t extent : tensor.shape) shape.push_back(extent);
    int64_t sum = 0;
    for (size_t i = 0; i < tensor.size; ++i) sum += tensor.data[i];
    file.Get(name, tensor.dtype, tensor.shape);
    line.Set(ffi::String(name), json::Array{ffi::String(NameOf(tensor.dtype)), shape, sum});
  }
  return line;
}

// Fills a tensor with multiples of 1/8, which all types represent exactly.
template <typename T>
Tensor Filled(const ffi::Shape &shape, DLDataType dtype, int64_t factor, int64_t modulus) {
  Tensor tensor = Tensor::Empty(shape, dtype, DLDevice{kDLCPU, 0});
  T *values = static_cast<T *>(tensor->data);
  for (int64_t i = 0; i < shape.Product(); ++i) {
    values[i] = static_cast<T>(static_cast<float>(i * factor % modulus - modulus / 2) / 8);
  }
  return tensor;
}

json::Object Prove() {
  const ffi::Function load = ffi::Function::GetGlobalRequired("ffi.SystemLib");
  const auto library = load(kBlockLibraries[0].prefix).cast<ffi::Module>();
  const auto vm = (*library->GetFunction("vm_load_executable", true))().cast<ffi::Module>();
  (*vm->GetFunction("vm_initialization", true))(
      static_cast<int>(kDLCPU), 0, static_cast<int>(tvm::runtime::memory::AllocatorType::kPooled));
  const DLDataType f32{kDLFloat, 32, 1}, f16{kDLFloat, 16, 1};
  const Tensor x = Filled<float>({5, 64}, f32, 7, 13);
  const Tensor weight = Filled<_Float16>({8, 64, 16}, f16, 5, 17);
  const Tensor bias = Filled<float>({128}, f32, 3, 11);
  const auto y = (*vm->GetFunction("proof", true))(x, weight, bias).cast<Tensor>();
  json::Array values;
  const float *data = static_cast<const float *>(y->data);
  for (int64_t i = 0; i < y.shape().Product(); ++i) values.push_back(double{data[i]});
  json::Object line;
  line.Set(ffi::String("values"), values);
  return line;
}

json::Object Failure(const EngineError &error) {
  json::Object line;
  line.Set(ffi::String("code"), ffi::String(error.code()));
  line.Set(ffi::String("message"), ffi::String(error.what()));
  return line;
}

template <typename Command>
void Print(const Command &command) {
  json::Object line;
  try {
    line = command();
  } catch (const EngineError &error) {
    line = Failure(error);
  }
  std::printf("%s\n", json::Stringify(line).c_str());
}

}  // namespace
}  // namespace minicpmv

int main(int argc, char **argv) {
  using namespace minicpmv;
  const Words words(argv + 1, argv + argc);
  if (words.empty()) return 2;
  const Words rest(words.begin() + 1, words.end());
  if (words[0] == "choose") Print([&] { return Choose(rest); });
  if (words[0] == "proof") Print([] { return Prove(); });
  if (words[0] == "weights") {
    for (const std::string &path : rest) Print([&] { return Describe(path); });
  }
  return 0;
}
