// Build-time constants of an engine. convert/engine/build.py generates their values.
#ifndef MINICPMV_ENGINE_BUILD_INFO_H_
#define MINICPMV_ENGINE_BUILD_INFO_H_

namespace minicpmv {

// A model's blocks, compiled for one level of CPU features and linked into this program.
struct BlockLibrary {
  const char* prefix;    // of its functions' names in the system library
  const char* features;  // CPU features that it requires, separated by spaces
};

extern const char kVersion[];    // of the toolkit
extern const char kTarget[];     // for example "android-arm64"
extern const char kProgramId[];  // identifies the compiled blocks; a bundle names the one it needs
// Fastest first; terminated by an entry whose prefix is nullptr.
extern const BlockLibrary kBlockLibraries[];

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_BUILD_INFO_H_
