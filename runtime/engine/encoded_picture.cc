#include "runtime/engine/encoded_picture.h"

#include <algorithm>
#include <cstring>

#include "runtime/engine/hash.h"

namespace minicpmv {
namespace {

// Copies image tokens (Q, D) over rows of a part (L, D). at: the first token's row, which may lie
// outside of the part.
void PutImage(const std::vector<float>& tokens, int64_t at, const Tensor& part) {
  const int64_t width = part.size(1), count = static_cast<int64_t>(tokens.size()) / width;
  const int64_t first = std::max<int64_t>(at, 0), last = std::min(at + count, part.size(0));
  if (first >= last) return;
  std::memcpy(static_cast<float*>(part.data_ptr()) + first * width,
              tokens.data() + (first - at) * width,
              static_cast<size_t>((last - first) * width) * sizeof(float));
}

}  // namespace

uint64_t PictureKey(Grid grid, const std::vector<uint64_t>& images) {
  std::vector<uint64_t> content = {static_cast<uint64_t>(grid.columns),
                                   static_cast<uint64_t>(grid.rows)};
  content.insert(content.end(), images.begin(), images.end());
  return HashBytes(content.data(), content.size() * sizeof(uint64_t));
}

void PutPicture(const EncodedPicture& picture, const std::vector<int64_t>& starts, int64_t first,
                const Tensor& part) {
  for (size_t i = 0; i < picture.images.size(); ++i) {
    PutImage(picture.images[i]->tokens, starts.at(i) - first, part);
  }
}

}  // namespace minicpmv
