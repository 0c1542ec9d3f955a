// Fuzzes files that a request reads: decoded pixels and saved image tokens.
#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "runtime/engine/embeddings_file.h"
#include "runtime/engine/error.h"
#include "runtime/engine/image_preprocessor.h"
#include "runtime/engine/picture_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace minicpmv;
  constexpr Size kSize{28, 28};
  static ImagePreprocessor preprocessor(kSize.area());
  static const EmbeddingsIdentity identity{"program", "weights", 2, 4, 9};
  {
    std::ofstream file("file", std::ios::binary);
    file.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
    file.close();
    if (!file) std::abort();
  }
  try {
    preprocessor.Resize(PictureFile("file").picture(), kSize, {0, 0, kSize}, [] { return false; });
  } catch (const EngineError&) {
  }
  try {
    // An accepted file must survive a round trip.
    const EncodedPicture picture = LoadEmbeddings("file", identity);
    if (SaveEmbeddings("again", identity, picture) != static_cast<int64_t>(size)) std::abort();
  } catch (const EngineError&) {
  }
  return 0;
}
