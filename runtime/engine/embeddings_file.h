// A picture's image tokens, cached in a file so that another run does not encode it again.
//
// The format, little-endian, written and read only by the engine:
//   offset  size  field
//        0     8  magic, the bytes "MCPMVEMB"
//        8     4  version, unsigned: 2
//       12     4  N, unsigned: length of the identity, bytes
//       16     4  columns of slices, unsigned; 0 if the overview is the only image
//       20     4  rows of slices, unsigned
//       24     4  Q, unsigned: image tokens of an image
//       28     4  D, unsigned: their width
//       32     8  checksum: HashBytes of the whole file, with these bytes set to zero
//       40     N  identity: the program that computed the values, and its weights
// then for each image, the overview and then the slices row by row:
//              8  the image's key, unsigned, not 0
//          4*Q*D  values (Q, D), float32
// and nothing after it.
#ifndef MINICPMV_ENGINE_EMBEDDINGS_FILE_H_
#define MINICPMV_ENGINE_EMBEDDINGS_FILE_H_

#include <cstdint>
#include <string>

#include "runtime/engine/encoded_picture.h"

namespace minicpmv {

// Identifies the program and the weights that embeddings were computed with.
struct EmbeddingsIdentity {
  std::string program_id;
  std::string weights_sha256;
  int64_t image_tokens;  // Q
  int64_t width;         // D
  int64_t max_slices;    // that a picture of the model may have
};

// Writes a file atomically.
// Returns its size, bytes.
// Throws EngineError (file_error): the file cannot be written.
int64_t SaveEmbeddings(const std::string& path, const EmbeddingsIdentity& identity,
                       const EncodedPicture& picture);

// Throws EngineError (invalid_embeddings): no such file, not this format or version, damaged, or
// written by another program or with other weights.
EncodedPicture LoadEmbeddings(const std::string& path, const EmbeddingsIdentity& identity);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_EMBEDDINGS_FILE_H_
