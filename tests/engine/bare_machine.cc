// A program for a machine without a system: `bochs.py` starts it in Bochs, in 64-bit mode.
// It enables AVX-512 and AMX, computes the cases that lie behind it, and writes the results to port
// 0xE9, which Bochs copies to its stdout.
#include <cstdint>

#include "runtime/engine/tile_products.h"

// A case: this head, then weights, steps, tokens, scales and room for `out`, each from a multiple
// of 64 bytes on. The last head has no length.
struct Case {
  int64_t stride, length, columns, groups, quads;
  int64_t weights, steps, tokens, scales, out;  // where they begin, bytes behind the head
  int64_t out_bytes, next;
};

namespace {

void Out(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }

void Write(const char* bytes, int64_t count) {
  __asm__ volatile("rep outsb" : "+S"(bytes), "+c"(count) : "d"(0xe9) : "memory");
}

void EnableStates() {
  uint64_t cr0, cr4;
  __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
  __asm__ volatile("mov %0, %%cr0" ::"r"((cr0 & ~uint64_t{12}) | 2));  // no emulation of the FPU
  __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
  __asm__ volatile("mov %0, %%cr4" ::"r"(cr4 | 1 << 9 | 1 << 10 | 1 << 18));  // SSE, XSAVE
  constexpr uint32_t kStates = 0x600e7;  // to AVX-512, and both of AMX
  __asm__ volatile("xsetbv" ::"a"(kStates), "d"(0), "c"(0));
}

}  // namespace

extern "C" void Main(char* cases) {
  EnableStates();
  Write("<<<<", 4);
  while (true) {
    const Case& c = *reinterpret_cast<const Case*>(cases);
    if (c.length == 0) break;
    minicpmv_tile_products(reinterpret_cast<const int8_t*>(cases + c.weights),
                           reinterpret_cast<const uint16_t*>(cases + c.steps),
                           reinterpret_cast<const int8_t*>(cases + c.tokens),
                           reinterpret_cast<const float*>(cases + c.scales),
                           reinterpret_cast<float*>(cases + c.out), c.stride, c.length, c.columns,
                           c.groups, c.quads);
    Write(cases + c.out, c.out_bytes);
    cases += c.next;
  }
  Write(">>>>", 4);
  for (const char* word = "Shutdown"; *word; ++word) Out(0x8900, static_cast<uint8_t>(*word));
  while (true) __asm__ volatile("hlt");
}
