// A picture's image tokens, as the cache keeps them and prompts take them.
#ifndef MINICPMV_ENGINE_ENCODED_PICTURE_H_
#define MINICPMV_ENGINE_ENCODED_PICTURE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/engine/slices.h"
#include "runtime/engine/tensors.h"

namespace minicpmv {

struct EncodedImage {
  uint64_t key;               // hash of the resized pixels; not 0
  std::vector<float> tokens;  // (Q, D)
};

struct EncodedPicture {
  uint64_t key;  // see PictureKey
  Grid grid;
  // The overview, then the slices row by row. Pictures share images whose pixels are the same.
  std::vector<std::shared_ptr<const EncodedImage>> images;
};

// Returns a picture's key, which is not 0: a hash of its grid and of its images' keys.
uint64_t PictureKey(Grid grid, const std::vector<uint64_t>& images);

// Copies a picture's image tokens over their placeholders in a part of a prompt.
// starts: of each image, the index of its first placeholder in the prompt. first: the index of the
// part's first token. part: (L, D), the embeddings of its tokens.
void PutPicture(const EncodedPicture& picture, const std::vector<int64_t>& starts, int64_t first,
                const Tensor& part);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_ENCODED_PICTURE_H_
