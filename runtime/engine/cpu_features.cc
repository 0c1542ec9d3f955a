#include "runtime/engine/cpu_features.h"

#include <cstdint>
#include <sstream>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "runtime/engine/error.h"
#include "runtime/engine/matrix_unit.h"

namespace minicpmv {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// Returns a leaf of cpuid; zeros if the processor has no such leaf.
Registers CpuId(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// Returns whether all of the bits with these numbers are set.
template <typename... Bits>
bool All(uint64_t value, Bits... bits) {
  return ((value >> bits & 1) && ...);
}

// Returns the register states that the system saves at a context switch (XCR0).
uint64_t SavedStates() {
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

#endif

// Returns the words of `wanted` that are not in `features`.
std::string Missing(const char* wanted, const std::set<std::string>& features) {
  std::istringstream words(wanted);
  std::string missing;
  for (std::string word; words >> word;) {
    if (features.count(word) == 0) missing += (missing.empty() ? "" : " ") + word;
  }
  return missing;
}

}  // namespace

#if defined(__x86_64__)

std::set<std::string> CpuFeatures(std::vector<std::string>* refused) {
  const Registers basic = CpuId(1), extended = CpuId(7), more = CpuId(7, 1);
  const Registers amd = CpuId(0x80000001);
  std::set<std::string> features;
  // CMPXCHG16B, LAHF, POPCNT, SSE3, SSE4.1, SSE4.2, SSSE3
  if (!All(basic.ecx, 13, 23, 0, 19, 20, 9) || !All(amd.ecx, 0)) return features;
  features.insert("x86-64-v2");
  // Check OSXSAVE first: without it, xgetbv is not available. Then XMM, YMM.
  const uint64_t saved = All(basic.ecx, 27) ? SavedStates() : 0;
  if (!All(saved, 1, 2)) return features;
  // AVX, F16C, FMA, MOVBE; AVX2, BMI1, BMI2; LZCNT
  if (!All(basic.ecx, 28, 29, 12, 22) || !All(extended.ebx, 5, 3, 8) || !All(amd.ecx, 5)) {
    return features;
  }
  features.insert("x86-64-v3");
  if (All(more.eax, 4)) features.insert("avx-vnni");
  // Opmask, both parts of ZMM; AVX-512 F, BW, CD, DQ, VL
  if (!All(saved, 5, 6, 7) || !All(extended.ebx, 16, 30, 28, 17, 31)) return features;
  features.insert("x86-64-v4");
  if (All(extended.ecx, 11)) features.insert("avx512-vnni");
  // AMX-TILE, AMX-INT8
  if (All(extended.edx, 24, 25)) {
    if (const auto problem = MatrixUnitProblem()) {
      refused->push_back("the matrix unit (AMX) is not used: " + *problem);
    } else {
      features.insert("amx-int8");
    }
  }
  return features;
}

#elif defined(__aarch64__)

std::set<std::string> CpuFeatures(std::vector<std::string>* refused) {
  // Bits of Linux's HWCAP and HWCAP2, which hold for all cores of a processor.
  constexpr uint64_t kAsimd = 1 << 1, kScalarFp16 = 1 << 9, kVectorFp16 = 1 << 10;
  constexpr uint64_t kDotProduct = 1 << 20, kI8mm = 1 << 13;
  constexpr uint64_t kSme = 1 << 23, kSmeInt8 = 1 << 26;
  const uint64_t first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  std::set<std::string> features;
  if (first & kAsimd) features.insert("asimd");
  if ((first & kScalarFp16) && (first & kVectorFp16)) features.insert("fp16");
  if (first & kDotProduct) features.insert("dotprod");
  if (second & kI8mm) features.insert("i8mm");
  if ((second & kSme) && (second & kSmeInt8)) {
    if (const auto problem = MatrixUnitProblem()) {
      refused->push_back("the matrix unit (SME) is not used: " + *problem);
    } else {
      features.insert("sme");
    }
  }
  return features;
}

#endif

std::vector<std::string> RunnableBlocks(const BlockLibrary* libraries,
                                        const std::set<std::string>& features) {
  std::vector<std::string> runnable;
  std::string problem = "this program holds no compiled blocks";
  for (const BlockLibrary* library = libraries; library->prefix != nullptr; ++library) {
    const std::string missing = Missing(library->features, features);
    if (missing.empty()) runnable.emplace_back(library->prefix);
    problem =
        "this processor cannot run any of the compiled blocks; the least demanding ones "
        "also need: " +
        missing;
  }
  if (runnable.empty()) throw EngineError(error_code::kUnsupportedCpu, problem);
  return runnable;
}

}  // namespace minicpmv
