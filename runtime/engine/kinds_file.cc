#include "runtime/engine/kinds_file.h"

#include <algorithm>
#include <sstream>

#include "runtime/engine/output_path.h"
#include "runtime/engine/regular_file.h"

namespace minicpmv {
namespace {

constexpr int64_t kMostBytes = 4096;

// Returns what a file begins with: a line for each fact.
std::string HeaderOf(const KindsIdentity& identity) {
  std::string header =
      "fastest kinds of blocks\n" + identity.program_id + "\n" + identity.cpu + "\n";
  for (const int threads : identity.choices.threads) header += std::to_string(threads) + " ";
  header += "\n";
  for (const std::string& prefix : identity.choices.prefixes) header += prefix + " ";
  return header + "\n";
}

}  // namespace

std::optional<Kinds> ReadKinds(const std::string& path, const KindsIdentity& identity) {
  const RegularFile file(path);
  if (!file.problem().empty() || file.size() > kMostBytes) return std::nullopt;
  std::string content(static_cast<size_t>(file.size()), '\0');
  if (!file.Read(content.data(), content.size())) return std::nullopt;
  const std::string header = HeaderOf(identity);
  if (content.compare(0, header.size(), header) != 0) return std::nullopt;
  std::istringstream words(content.substr(header.size()));
  Kinds kinds({"", 0});
  const std::vector<Kind> all = identity.choices.All();
  for (Kind* one : {&kinds.decode, &kinds.prefill, &kinds.picture}) {
    words >> one->prefix >> one->threads;
    const bool is_a_choice = std::any_of(all.begin(), all.end(), [one](const Kind& choice) {
      return choice.prefix == one->prefix && choice.threads == one->threads;
    });
    if (!is_a_choice) return std::nullopt;
  }
  std::string more;
  words >> more;
  if (!more.empty()) return std::nullopt;
  return kinds;
}

void WriteKinds(const std::string& path, const KindsIdentity& identity, const Kinds& kinds) {
  std::string content = HeaderOf(identity);
  for (const Kind& one : {kinds.decode, kinds.prefill, kinds.picture}) {
    content += one.prefix + " " + std::to_string(one.threads) + " ";
  }
  ReplaceFile(path, content + "\n");
}

}  // namespace minicpmv
