// The engine: says what it is, as one JSON line.
#include <tvm/ffi/extra/json.h>

#include <cstdio>
#include <set>
#include <string>

#include "runtime/engine/build_info.h"
#include "runtime/engine/cpu_features.h"
#include "runtime/engine/error.h"
#include "runtime/engine/json.h"

namespace minicpmv {
namespace {

void Print(const json::Object& line) {
  std::printf("%s\n", json::Stringify(line).c_str());
  std::fflush(stdout);
}

json::Object Hello() {
  const std::set<std::string> features = CpuFeatures();
  json::Array names;
  for (const std::string& feature : features) names.push_back(tvm::ffi::String(feature));
  json::Object line;
  line.Set("event", tvm::ffi::String("hello"));
  line.Set("version", tvm::ffi::String(kVersion));
  line.Set("target", tvm::ffi::String(kTarget));
  line.Set("program_id", tvm::ffi::String(kProgramId));
  line.Set("cpu_features", names);
  line.Set("blocks", tvm::ffi::String(ChooseBlocks(kBlockLibraries, features).prefix));
  return line;
}

}  // namespace
}  // namespace minicpmv

int main() {
  using namespace minicpmv;
  try {
    Print(Hello());
    return 0;
  } catch (const EngineError& error) {
    json::Object line;
    line.Set("event", tvm::ffi::String("error"));
    line.Set("code", tvm::ffi::String(error.code()));
    line.Set("message", tvm::ffi::String(error.what()));
    Print(line);
    return 1;
  }
}
