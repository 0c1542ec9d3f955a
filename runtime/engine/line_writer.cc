#include "runtime/engine/line_writer.h"

#include <poll.h>
#include <tvm/ffi/string.h>
#include <unistd.h>

#include <cerrno>

#include "runtime/engine/utf8.h"

namespace minicpmv {
Line& Line::Set(const char* name, const std::string& text) {
  std::string valid = text;
  if (!IsValidUtf8(valid)) {  // for example a path, or half of a surrogate pair
    for (char& c : valid) {
      if (static_cast<unsigned char>(c) >= 0x80) c = '?';
    }
  }
  return SetValue(name, tvm::ffi::String(valid));
}

Line& Line::SetValue(const char* name, const json::Value& value) {
  object_.Set(tvm::ffi::String(name), value);
  return *this;
}

void LineWriter::Write(const Line& line) const {
  const std::string text = std::string(json::Stringify(line.object())) + "\n";
  for (size_t written = 0; written < text.size();) {
    const ssize_t count = write(fd_, text.data() + written, text.size() - written);
    if (count >= 0) {
      written += static_cast<size_t>(count);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      pollfd ready{fd_, POLLOUT, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      throw ReaderGone();
    }
  }
}

}  // namespace minicpmv
