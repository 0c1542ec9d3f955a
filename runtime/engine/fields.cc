#include "runtime/engine/fields.h"

#include <tvm/ffi/string.h>

#include <cmath>
#include <utility>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

namespace ffi = tvm::ffi;

// Returns a number; nullopt for anything else, bools included.
std::optional<double> AsNumber(const json::Value& value) {
  if (value.as<bool>().has_value() && value.type_index() == ffi::TypeIndex::kTVMFFIBool) {
    return std::nullopt;
  }
  const auto number = value.as<double>();
  if (number.has_value()) return *number;
  const auto integer = value.as<int64_t>();
  if (integer.has_value()) return static_cast<double>(*integer);
  return std::nullopt;
}

std::optional<int64_t> AsInteger(const json::Value& value) {
  if (value.type_index() != ffi::TypeIndex::kTVMFFIInt) return std::nullopt;
  return *value.as<int64_t>();
}

}  // namespace

Fields::Fields(const json::Value& value, std::string code, std::string where)
    : code_(std::move(code)), where_(std::move(where)) {
  const auto object = value.as<json::Object>();
  if (!object.has_value()) Refuse("expected a JSON object");
  object_ = *object;
}

bool Fields::Has(std::string_view name) const {
  const auto found = object_.find(ffi::String(name.data(), name.size()));
  return found != object_.end() && (*found).second != nullptr;
}

std::string Fields::String(std::string_view name) {
  const auto text = Require(name).as<ffi::String>();
  if (!text.has_value()) Expected(name, "a string");
  return std::string(*text);
}

std::optional<std::string> Fields::OptionalString(std::string_view name) {
  if (!Take(name)) return std::nullopt;
  return String(name);
}

int64_t Fields::Integer(std::string_view name, int64_t least) {
  const auto number = AsInteger(Require(name));
  if (!number || *number < least) {
    Expected(name, "an integer of at least " + std::to_string(least));
  }
  return *number;
}

std::optional<int64_t> Fields::OptionalInteger(std::string_view name, int64_t least) {
  if (!Take(name)) return std::nullopt;
  return Integer(name, least);
}

double Fields::Number(std::string_view name) {
  const auto number = AsNumber(Require(name));
  if (!number || !std::isfinite(*number)) Expected(name, "a number");
  return *number;
}

std::optional<double> Fields::OptionalNumber(std::string_view name) {
  if (!Take(name)) return std::nullopt;
  return Number(name);
}

std::optional<bool> Fields::OptionalFlag(std::string_view name) {
  const auto value = Take(name);
  if (!value) return std::nullopt;
  if (value->type_index() != ffi::TypeIndex::kTVMFFIBool) Expected(name, "true or false");
  return *value->as<bool>();
}

json::Value Fields::Id(std::string_view name) {
  const auto value = Take(name);
  if (!value) return nullptr;
  if (AsInteger(*value) || value->as<ffi::String>().has_value()) return *value;
  Expected(name, "an integer or a string");
}

std::vector<std::string> Fields::Strings(std::string_view name) {
  std::vector<std::string> texts;
  for (const json::Value& value : List(name)) {
    const auto text = value.as<ffi::String>();
    if (!text.has_value()) Expected(name, "a list of strings");
    texts.emplace_back(*text);
  }
  return texts;
}

std::vector<int64_t> Fields::Integers(std::string_view name) {
  std::vector<int64_t> integers;
  for (const json::Value& value : List(name)) {
    const auto number = AsInteger(value);
    if (!number || *number < 0) Expected(name, "a list of integers, 0 or more");
    integers.push_back(*number);
  }
  return integers;
}

Fields Fields::Object(std::string_view name) {
  return Fields(Require(name), code_, where_ + ": " + std::string(name));
}

std::vector<Fields> Fields::Objects(std::string_view name) {
  std::vector<Fields> objects;
  for (const json::Value& value : List(name)) {
    const std::string place = std::string(name) + " " + std::to_string(objects.size());
    objects.emplace_back(value, code_, where_ + ": " + place);
  }
  return objects;
}

std::vector<std::string> Fields::Names() const {
  std::vector<std::string> names;
  for (const auto& field : object_) names.emplace_back(field.first.cast<ffi::String>());
  return names;
}

void Fields::RefuseUnknown() const {
  for (const std::string& name : Names()) {
    if (taken_.count(name) == 0) Refuse("unknown field " + name);
  }
}

void Fields::Refuse(const std::string& problem) const {
  throw EngineError(code_, where_ + ": " + problem);
}

std::optional<json::Value> Fields::Take(std::string_view name) {
  taken_.emplace(name);
  if (!Has(name)) return std::nullopt;
  return (*object_.find(ffi::String(name.data(), name.size()))).second;
}

json::Value Fields::Require(std::string_view name) {
  auto value = Take(name);
  if (!value) Refuse("lacks the field " + std::string(name));
  return *std::move(value);
}

json::Array Fields::List(std::string_view name) {
  const auto list = Require(name).as<json::Array>();
  if (!list.has_value()) Expected(name, "a list");
  return *list;
}

void Fields::Expected(std::string_view name, const std::string& what) const {
  Refuse(std::string(name) + ": expected " + what);
}

}  // namespace minicpmv
