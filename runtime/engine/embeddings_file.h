// A picture's image tokens, cached in a file so that another run does not encode it again.
//
// The format, little-endian, written and read only by the engine:
//   offset  size  field
//        0     8  magic, the bytes "MCPMVEMB"
//        8     4  version, unsigned: 1
//       12     4  N, unsigned: length of the identity, bytes
//       16     8  the picture's key, unsigned, not 0
//       24     4  Q, unsigned: image tokens
//       28     4  D, unsigned: their width
//       32     8  checksum: HashBytes of the whole file, with these bytes set to zero
//       40     N  identity: the program that computed the values, and its weights
//     40+N 4*Q*D  values (Q, D), float32
// and nothing after it.
#ifndef MINICPMV_ENGINE_EMBEDDINGS_FILE_H_
#define MINICPMV_ENGINE_EMBEDDINGS_FILE_H_

#include <cstdint>
#include <string>

#include "runtime/engine/picture_encoder.h"

namespace minicpmv {

// Identifies the program and the weights that embeddings were computed with.
struct EmbeddingsIdentity {
  std::string program_id;
  std::string weights_sha256;
  int64_t image_tokens;  // Q
  int64_t width;         // D
};

// Writes a file atomically.
// Returns its size, bytes.
// Throws EngineError (file_error): the file cannot be written.
int64_t SaveEmbeddings(const std::string& path, const EmbeddingsIdentity& identity,
                       const EncodedPicture& picture);

// Throws EngineError (invalid_embeddings): no such file, not this format, damaged, or written by
// another program or with other weights.
EncodedPicture LoadEmbeddings(const std::string& path, const EmbeddingsIdentity& identity);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_EMBEDDINGS_FILE_H_
