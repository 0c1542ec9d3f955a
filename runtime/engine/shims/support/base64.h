#ifndef TVM_SUPPORT_BASE64_H_
#define TVM_SUPPORT_BASE64_H_

#include <tvm/ffi/extra/base64.h>
#include <tvm/support/io.h>

#include <string>

#include "bytes_io.h"

namespace tvm {
namespace support {

/*! \brief Buffers bytes; `Finish` writes them to another stream in base64. */
class Base64OutStream : public Stream {
 public:
  explicit Base64OutStream(Stream* text) : text_(text), out_(&bytes_) {}

  using Stream::Read;
  using Stream::Write;

  size_t Read(void*, size_t) final { return 0; }
  size_t Write(const void* data, size_t size) final { return out_.Write(data, size); }

  void Finish() {
    std::string encoded = ffi::Base64Encode(ffi::Bytes(bytes_));
    text_->Write(static_cast<const void*>(encoded.data()), encoded.size());
  }

 private:
  Stream* text_;
  std::string bytes_;
  BytesOutStream out_;
};

/*! \brief Decodes another stream's base64; call `InitPosition` first. */
class Base64InStream : public Stream {
 public:
  explicit Base64InStream(Stream* text) : text_(text), in_(bytes_) {}

  using Stream::Read;
  using Stream::Write;

  void InitPosition() {
    std::string encoded;
    char buffer[4096];
    while (size_t count = text_->Read(static_cast<void*>(buffer), sizeof(buffer))) {
      encoded.append(buffer, count);
    }
    bytes_ = ffi::Base64Decode(ffi::String(encoded));
    in_ = BytesInStream(bytes_);
  }

  size_t Read(void* data, size_t size) final { return in_.Read(data, size); }
  size_t Write(const void*, size_t) final { return 0; }

 private:
  Stream* text_;
  ffi::Bytes bytes_;
  BytesInStream in_;
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_BASE64_H_
