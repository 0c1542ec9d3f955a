// A picture's image tokens in a file, so that another run need not encode it again.
//
// The format, little-endian, written and read by the engine alone:
//   offset  size  field
//        0     8  magic, the bytes "MCPMVEMB"
//        8     4  version, unsigned: 1
//       12     4  N, unsigned: bytes of the identity
//       16     8  the picture's key, unsigned, not 0
//       24     4  Q, unsigned: image tokens
//       28     4  D, unsigned: their width
//       32     8  checksum: HashBytes of the whole file, these bytes taken as zeros
//       40     N  identity: which program computed them, with which weights
//     40+N 4*Q*D  values (Q, D), float32
// and nothing behind it.
#ifndef MINICPMV_ENGINE_EMBEDDINGS_FILE_H_
#define MINICPMV_ENGINE_EMBEDDINGS_FILE_H_

#include <cstdint>
#include <string>

#include "runtime/engine/picture_encoder.h"

namespace minicpmv {

// What tells that embeddings are those that this program computes with these weights.
struct EmbeddingsIdentity {
  std::string program_id;
  std::string weights_sha256;
  int64_t image_tokens;  // Q
  int64_t width;         // D
};

// Writes a file; it appears whole or not at all.
// Returns its size, bytes.
// Throws EngineError (file_error): cannot be written.
int64_t SaveEmbeddings(const std::string& path, const EmbeddingsIdentity& identity,
                       const EncodedPicture& picture);

// Throws EngineError (invalid_embeddings): no such file, not of this format, damaged, or of
// another program or other weights.
EncodedPicture LoadEmbeddings(const std::string& path, const EmbeddingsIdentity& identity);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_EMBEDDINGS_FILE_H_
