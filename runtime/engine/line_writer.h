// Writes the engine's JSON lines.
#ifndef MINICPMV_ENGINE_LINE_WRITER_H_
#define MINICPMV_ENGINE_LINE_WRITER_H_

#include <string>

#include "runtime/engine/json.h"

namespace minicpmv {

// Builds a JSON object from fields of the protocol's types.
class Line {
 public:
  Line& Set(const char* name, const std::string& text);
  Line& Set(const char* name, const char* text) { return Set(name, std::string(text)); }
  Line& Set(const char* name, bool flag) { return SetValue(name, flag); }
  Line& Set(const char* name, int64_t number) { return SetValue(name, number); }
  Line& Set(const char* name, double number) { return SetValue(name, number); }
  Line& Set(const char* name, const Line& line) { return SetValue(name, line.object_); }
  Line& Set(const char* name, const json::Value& value) { return SetValue(name, value); }

  const json::Object& object() const { return object_; }

 private:
  Line& SetValue(const char* name, const json::Value& value);

  json::Object object_;
};

// No client is left to work for. Not a std::exception: it ends the server, not only a request.
struct ReaderGone {};

// Writes whole lines to a file descriptor, unbuffered. The descriptor may be non-blocking.
class LineWriter {
 public:
  explicit LineWriter(int fd) : fd_(fd) {}

  // Throws ReaderGone: the reader has closed its end, or the descriptor cannot be written.
  void Write(const Line& line) const;

 private:
  const int fd_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_LINE_WRITER_H_
