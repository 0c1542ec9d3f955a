// CPU feature detection, and the choice of the compiled blocks that match.
#ifndef MINICPMV_ENGINE_CPU_FEATURES_H_
#define MINICPMV_ENGINE_CPU_FEATURES_H_

#include <set>
#include <string>
#include <vector>

#include "runtime/engine/build_info.h"

namespace minicpmv {

// Returns the features that the processor has and the system enables:
//   x86-64: x86-64-v2, x86-64-v3, x86-64-v4 (the levels of the psABI), avx512-vnni, avx-vnni,
//     amx-int8
//   arm64: asimd, fp16 (arithmetic), dotprod, i8mm, sme (with int8 products)
// refused: gets a sentence for each feature that is announced but does not work.
std::set<std::string> CpuFeatures(std::vector<std::string>* refused);

// Returns the prefixes of those of `libraries` (a list as kBlockLibraries) that run with these
// features, in their order.
// Throws EngineError (unsupported_cpu): none does.
std::vector<std::string> RunnableBlocks(const BlockLibrary* libraries,
                                        const std::set<std::string>& features);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_CPU_FEATURES_H_
