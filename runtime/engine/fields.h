// Typed access to the fields of a JSON object.
#ifndef MINICPMV_ENGINE_FIELDS_H_
#define MINICPMV_ENGINE_FIELDS_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/json.h"

namespace minicpmv {

// Reads an untrusted object. A field that is null counts as missing.
//
// Every method throws EngineError, with the code given to the constructor, if a field has the
// wrong type; methods without `Optional` in their names also throw if it is missing.
class Fields {
 public:
  // value: must be an object. code, where: the code of errors, and the prefix of their messages.
  Fields(const json::Value& value, std::string code, std::string where);

  bool Has(std::string_view name) const;

  std::string String(std::string_view name);
  std::optional<std::string> OptionalString(std::string_view name);

  // An integer of at least `least`.
  int64_t Integer(std::string_view name, int64_t least);
  std::optional<int64_t> OptionalInteger(std::string_view name, int64_t least);

  // A finite number.
  double Number(std::string_view name);
  std::optional<double> OptionalNumber(std::string_view name);

  std::optional<bool> OptionalFlag(std::string_view name);

  // An integer or a string, unchanged; null if it is missing.
  json::Value Id(std::string_view name);

  std::vector<std::string> Strings(std::string_view name);
  // Integers, 0 or more.
  std::vector<int64_t> Integers(std::string_view name);

  // Nested objects.
  Fields Object(std::string_view name);
  std::vector<Fields> Objects(std::string_view name);

  // The names of all fields, in the object's order.
  std::vector<std::string> Names() const;

  // Throws if there is a field that no method has read.
  void RefuseUnknown() const;

  // Throws an error that names this object.
  [[noreturn]] void Refuse(const std::string& problem) const;

 private:
  std::optional<json::Value> Take(std::string_view name);
  json::Value Require(std::string_view name);
  json::Array List(std::string_view name);
  [[noreturn]] void Expected(std::string_view name, const std::string& what) const;

  json::Object object_;
  std::string code_, where_;
  std::set<std::string, std::less<>> taken_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_FIELDS_H_
