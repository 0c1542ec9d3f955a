#include "runtime/engine/weights_file.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "runtime/engine/error.h"
#include "runtime/engine/json.h"

namespace minicpmv {
namespace {

namespace ffi = tvm::ffi;

constexpr char kMetadata[] = "__metadata__";
constexpr std::string_view kPad = "__pad.";
constexpr size_t kLengthBytes = 8;            // the header's length, little-endian
constexpr uint64_t kHeaderLimit = 100000000;  // bytes; the limit of the safetensors library
constexpr DType kDTypes[] = {DType::kU8, DType::kI8, DType::kF16, DType::kF32};

// An entry of the header.
struct Entry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;  // bytes, relative to the end of the header
};

[[noreturn]] void Refuse(const std::string& where, const std::string& reason) {
  throw EngineError(error_code::kInvalidBundle, where + ": " + reason);
}

std::string Join(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + ")";
}

// A read-only mapping that unmaps itself, unless it is released.
class Mapping {
 public:
  Mapping(const std::string& path, const RegularFile& file) {
    if (!file.problem().empty()) Refuse(path, file.problem());
    if (file.size() <= static_cast<int64_t>(kLengthBytes)) Refuse(path, "truncated");
    size_ = static_cast<size_t>(file.size());
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.fd(), 0);
    if (mapped == MAP_FAILED) Refuse(path, std::strerror(errno));
    data_ = mapped;
  }
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const uint8_t* data() const { return static_cast<const uint8_t*>(data_); }
  size_t size() const { return size_; }
  void Release() { data_ = nullptr; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

uint64_t LittleEndian64(const uint8_t* bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return value;
}

// Returns a list of non-negative integers.
std::optional<std::vector<int64_t>> Counts(const json::Object& entry, const char* key) {
  const auto found = entry.find(ffi::String(key));
  if (found == entry.end()) return std::nullopt;
  const auto list = (*found).second.as<json::Array>();
  if (!list.has_value()) return std::nullopt;
  std::vector<int64_t> counts;
  for (const json::Value& value : *list) {
    const auto number = value.as<int64_t>();
    if (!number.has_value() || *number < 0) return std::nullopt;
    counts.push_back(*number);
  }
  return counts;
}

std::optional<DType> TypeOf(const json::Object& entry) {
  const auto found = entry.find(ffi::String("dtype"));
  if (found == entry.end()) return std::nullopt;
  const auto name = (*found).second.as<ffi::String>();
  if (!name.has_value()) return std::nullopt;
  for (DType dtype : kDTypes) {
    if (*name == NameOf(dtype)) return dtype;
  }
  return std::nullopt;
}

// Returns the size of a tensor, bytes; nullopt if it overflows.
std::optional<uint64_t> SizeOf(DType dtype, const std::vector<int64_t>& shape) {
  uint64_t size = SizeOf(dtype);
  for (int64_t extent : shape) {
    if (__builtin_mul_overflow(size, static_cast<uint64_t>(extent), &size)) return std::nullopt;
  }
  return size;
}

Entry ParseEntry(const std::string& path, const std::string& name, const json::Value& value) {
  const std::string where = path + ": tensor " + name;
  const auto entry = value.as<json::Object>();
  if (!entry.has_value() || entry->size() != 3) {
    Refuse(where, "expected the keys dtype, shape, data_offsets");
  }
  const auto dtype = TypeOf(*entry);
  if (!dtype.has_value()) Refuse(where, "its type is not one of U8, I8, F16, F32");
  auto shape = Counts(*entry, "shape");
  const auto offsets = Counts(*entry, "data_offsets");
  if (!shape.has_value() || !offsets.has_value() || offsets->size() != 2) {
    Refuse(where, "shape and data_offsets must be lists of integers");
  }
  const auto begin = static_cast<uint64_t>((*offsets)[0]),
             end = static_cast<uint64_t>((*offsets)[1]);
  const auto size = SizeOf(*dtype, *shape);
  if (end < begin || !size.has_value() || end - begin != *size) {
    Refuse(where, std::string(NameOf(*dtype)) + " of shape " + Join(*shape) +
                      " does not match the bytes from " + std::to_string(begin) + " to " +
                      std::to_string(end));
  }
  return {name, *dtype, std::move(*shape), begin, end};
}

// Parses a header and checks that the tensors are contiguous from the first byte to the last.
// size: of all tensors, bytes.
std::vector<Entry> ParseHeader(const std::string& path, std::string_view text, uint64_t size) {
  const auto header =
      ParseJson(text, error_code::kInvalidBundle, path + ": the header").as<json::Object>();
  if (!header.has_value()) Refuse(path, "the header is not a JSON object");
  std::vector<Entry> entries;
  for (const auto& [key, value] : *header) {
    const auto name = key.cast<ffi::String>();
    if (name != kMetadata) entries.push_back(ParseEntry(path, std::string(name), value));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      Refuse(path + ": tensor " + entry.name,
             entry.begin < end ? "overlaps the tensor before it" : "leaves a gap before it");
    }
    end = entry.end;
  }
  if (end != size) {
    Refuse(path, "truncated or altered: its header describes " + std::to_string(end) +
                     " bytes, but " + std::to_string(size) + " follow it");
  }
  return entries;
}

}  // namespace

size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kU8:
    case DType::kI8:
      return 1;
    case DType::kF16:
      return 2;
    case DType::kF32:
      return 4;
  }
  return 0;
}

const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kU8:
      return "U8";
    case DType::kI8:
      return "I8";
    case DType::kF16:
      return "F16";
    case DType::kF32:
      return "F32";
  }
  return "";
}

WeightsFile::WeightsFile(const std::string& path, const RegularFile& file) : path_(path) {
  Mapping mapping(path, file);
  const uint64_t length = LittleEndian64(mapping.data());
  if (length > kHeaderLimit || length > mapping.size() - kLengthBytes) {
    Refuse(path, "truncated, or not a safetensors file: its first bytes announce a header of " +
                     std::to_string(length) + " bytes, but the file has " +
                     std::to_string(mapping.size()));
  }
  const size_t start = kLengthBytes + static_cast<size_t>(length);
  const std::string_view header(reinterpret_cast<const char*>(mapping.data()) + kLengthBytes,
                                static_cast<size_t>(length));
  for (Entry& entry : ParseHeader(path, header, mapping.size() - start)) {
    if (std::string_view(entry.name).substr(0, kPad.size()) == kPad) continue;
    const size_t offset = start + static_cast<size_t>(entry.begin);
    if (offset % kWeightAlignment != 0) {
      Refuse(path + ": tensor " + entry.name,
             "is not aligned to " + std::to_string(kWeightAlignment) + " bytes");
    }
    tensors_.emplace(std::move(entry.name),
                     TensorView{entry.dtype, std::move(entry.shape), mapping.data() + offset,
                                static_cast<size_t>(entry.end - entry.begin)});
  }
  mapped_ = mapping.data();
  size_ = mapping.size();
  mapping.Release();
}

WeightsFile::~WeightsFile() { munmap(const_cast<uint8_t*>(mapped_), size_); }

const TensorView& WeightsFile::Get(const std::string& name, DType dtype,
                                   const std::vector<int64_t>& shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) Refuse(path_, "lacks the tensor " + name);
  const TensorView& tensor = found->second;
  if (tensor.dtype != dtype || tensor.shape != shape) {
    Refuse(path_ + ": tensor " + name, std::string(NameOf(tensor.dtype)) + " of shape " +
                                           Join(tensor.shape) + "; expected " + NameOf(dtype) +
                                           " of shape " + Join(shape));
  }
  return tensor;
}

}  // namespace minicpmv
